"""Latency of one 512 x 512 image, from pixels in memory to RLE masks, against torchvision with pycocotools.

    python -m benchmarks.bench_latency [--runs 100] [--threads 2] [--backbones resnet50 mobilenet_v3_large]

Both sides have the same random weights, whose class scores are peaked so that each image yields 100 instances, and take
turns on the same images. A second peer is OpenVINO's own conversion of torchvision's whole network. Ours runs, with the
engine that a run would take, in exact mode and, where the processor computes in bfloat16, in fast mode.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.bench_predict import (
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    draw_pixels,
    make_checkpoint,
    make_predictor,
    segment,
)
from benchmarks.figures import print_figures
from benchmarks.peer_openvino import convert_whole
from benchmarks.peer_segment import torchvision_network
from model.checkpoint import load_checkpoint
from model.inference.openvino_engine import is_installed
from model.inference.predictor import native_dtype
from model.spec import ModelSpec
from pipeline.bulk.encode import warm_up

SIDE = 512
WARM_UP = 3


def ours(checkpoint: str, num_threads: int, precision: str) -> Callable[[np.ndarray], int]:
    """Our predictor, as a function that predicts and encodes one image and returns its number of instances."""
    predictor = make_predictor(checkpoint, batch_size=1, precision=precision, num_threads=num_threads)
    warm_up()

    return lambda pixels: segment(predictor, [pixels])


def peer(checkpoint: str, num_threads: int | None = None) -> Callable[[np.ndarray], int]:
    """The same function with torchvision's full-image masks and pycocotools.

    With a number of threads, the network is OpenVINO's conversion of the whole.
    """
    loaded = load_checkpoint(checkpoint)
    spec = loaded.spec.replace(score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS)
    network = torchvision_network(spec)
    network.load_state_dict(loaded.build().state_dict())

    whole = None if num_threads is None else convert_whole(network, torch.rand(3, SIDE, SIDE), num_threads)

    def segment_one(pixels: np.ndarray) -> int:
        with torch.inference_mode():
            image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
            output = network([image])[0] if whole is None else whole(image)
        masks = (output["masks"][:, 0] >= 0.5).numpy().astype(np.uint8)
        return len([coco.encode(np.asfortranarray(mask)) for mask in masks])

    return segment_one


def compare(backbone: str, num_runs: int, num_threads: int) -> dict[str, float]:
    """Latency percentiles in milliseconds and their ratios, for one network; keys start with its backbone's name."""
    spec = ModelSpec(backbone=backbone, num_classes=90, norm="batch", image_min_size=SIDE, image_max_size=SIDE)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), spec)
        sides = {"peer": peer(folder), "exact": ours(folder, num_threads, "float32")}
        if is_installed():
            sides["OpenVINO of the whole"] = peer(folder, num_threads)
        if native_dtype("fast", "cpu")[1] is None:
            sides["fast"] = ours(folder, num_threads, "bfloat16")
    images = [draw_pixels(random, SIDE, SIDE) for _ in range(8)]
    spent_ms: dict[str, list[float]] = {name: [] for name in sides}
    instances: dict[str, int] = dict.fromkeys(sides, 0)
    for number in range(WARM_UP + num_runs):
        for name, segment_one in sides.items():
            started = time.perf_counter()
            num_instances = segment_one(images[number % len(images)])
            if number >= WARM_UP:
                spent_ms[name].append(1e3 * (time.perf_counter() - started))
                instances[name] += num_instances
    figures: dict[str, Any] = {}
    for name, values in spent_ms.items():
        figures |= {f"{backbone} {name} p{q} ms": float(np.percentile(values, q)) for q in (50, 99)}
        figures[f"{backbone} {name} instances"] = instances[name] / num_runs
        if name != "peer":
            for q in (50, 99):
                peer_ms, our_ms = (figures[f"{backbone} {side} p{q} ms"] for side in ("peer", name))
                figures[f"{backbone} {name} p{q} ratio"] = peer_ms / our_ms
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenet_v3_large"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, float] = {}
    for backbone in options.backbones:
        backbone_figures = compare(backbone, options.runs, options.threads)
        print(json.dumps({name: round(value, 3) for name, value in backbone_figures.items()}), flush=True)
        figures |= backbone_figures
    print_figures(figures)


if __name__ == "__main__":
    main()
