"""Predictor throughput and latency on one GPU or CPU, from pixels to RLE masks; its peer is a large matrix product.

    python -m benchmarks.bench_device [--device cuda] [--batches 1 8] [--images 64] [--precision bfloat16]

R50-FPN at 800 px with random weights whose class scores are peaked, so that each photo yields 100 instances. Pixels are
in memory. For each batch size: images/s from pixels to detections with RLE strings; the share of mask encoding, timed
separately; and the share of the device's own speed: the network's floating-point operations per second, as torch counts
them, over those of a product of two large matrices timed in the same run. `latency` is the time of one image of 512 x
512 px, which the network sees at that size. Without a GPU the benchmark runs on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_predict import draw_pixels, make_checkpoint, make_predictor, segment
from benchmarks.figures import print_figures
from model.inference.mask_rle import mask_runs
from model.inference.predictor import Detections, native_dtype
from model.spec import ModelSpec
from pipeline.bulk.encode import encode_instances, warm_up
from pipeline.bulk.predict import ImagePredictor

HEIGHT, WIDTH = 800, 1_216
LATENCY_SIDE, LATENCY_RUNS = 512, 50
PRODUCT_SIDE, PRODUCT_RUNS = 4_096, 10
ROUNDS = 3
ENCODE_RUNS = 20


def encode(predictor: ImagePredictor, detections: Detections, size: tuple[int, int]) -> None:
    """Encodes the mask head's output as RLE strings, on the device where a bulk run does so."""
    if predictor.paste is not None:
        masks, boxes = (
            torch.from_numpy(array).to(predictor.device) for array in (detections.mask_probs, detections.boxes)
        )
        lengths, counts = mask_runs(masks, boxes, size, predictor.paste)
        detections = dataclasses.replace(detections, runs=(lengths.cpu().numpy(), counts.cpu().numpy()))
    encode_instances(detections, predictor.categories, size, 0.5)


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of one call of `work`, until the device has finished it."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def product_flops(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a product of two large matrices."""
    matrix = torch.rand(PRODUCT_SIDE, PRODUCT_SIDE, device=device).to(dtype)
    multiply = functools.partial(torch.mm, matrix, matrix)
    multiply()
    spent = [seconds(multiply, device) for _ in range(PRODUCT_RUNS)]
    return 2 * PRODUCT_SIDE**3 / statistics.median(spent)


def image_flops(predictor: ImagePredictor, image: np.ndarray) -> float:
    """Floating-point operations of the network for one image."""
    # In float32 on the CPU some operations take paths that torch's counter does not see.
    network = predictor.predictor.model
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        image_tensor = torch.from_numpy(image).to(predictor.device).permute(2, 0, 1).float() / 255
        network.detect([image_tensor], [image.shape[:2]])
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--images", type=int, help="64 on a GPU, 8 on a CPU")
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    precision = options.precision or str(native_dtype("fast", options.device)[0]).removeprefix("torch.")
    random = np.random.default_rng(0)
    count = options.images or (64 if options.device == "cuda" else 8)
    images = [draw_pixels(random, HEIGHT, WIDTH) for _ in range(count)]
    square_image = draw_pixels(random, LATENCY_SIDE, LATENCY_SIDE)
    warm_up()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec(num_classes=90, norm="batch")
        checkpoint, square_checkpoint = Path(folder, "large"), Path(folder, "square")
        make_checkpoint(checkpoint, spec)
        make_checkpoint(square_checkpoint, spec.replace(image_min_size=LATENCY_SIDE, image_max_size=LATENCY_SIDE))
        peak = product_flops(options.device, getattr(torch, precision))
        figures["product, TFLOP/s"] = peak / 1e12
        settings = {"device": options.device, "precision": precision}
        flops_per_image = image_flops(
            make_predictor(str(checkpoint), batch_size=1, engine="torch", **settings), images[0]
        )
        figures["network, GFLOP an image"] = flops_per_image / 1e9
        for batch_size in options.batches:
            predictor = make_predictor(str(checkpoint), batch_size=batch_size, **settings)
            instances = segment(predictor, images)  # also warms up
            total_s = statistics.median(
                seconds(functools.partial(segment, predictor, images), options.device) for _ in range(ROUNDS)
            )
            (detections,) = predictor.predictor.predict(images[:1])
            encoding = functools.partial(encode, predictor, detections, (HEIGHT, WIDTH))
            encoding_s = statistics.median(seconds(encoding, options.device) for _ in range(ENCODE_RUNS))
            figures |= {
                f"batch {batch_size}: images/s": count / total_s,
                f"batch {batch_size}: instances an image": instances / count,
                f"batch {batch_size}: share of masks": encoding_s * count / total_s,
                f"batch {batch_size}: share of the device's speed": flops_per_image * count / total_s / peak,
            }
        square_predictor = make_predictor(str(square_checkpoint), batch_size=1, **settings)
        segment(square_predictor, [square_image])
        spent = [
            seconds(functools.partial(segment, square_predictor, [square_image]), options.device)
            for _ in range(LATENCY_RUNS)
        ]
        figures |= {f"latency p{q} ms": 1e3 * float(np.percentile(spent, q)) for q in (50, 99)}
    if options.device == "cuda":
        figures["peak memory, MiB"] = torch.cuda.max_memory_allocated() / 2**20
    print_figures(figures)


if __name__ == "__main__":
    main()
