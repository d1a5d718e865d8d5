"""Images/s and peak memory of a predictor with and without SAM behind it, and the time from SAM's masks to RLE.

    python -m benchmarks.bench_refine [--sam facebook/sam-vit-base] [--photos 12] [--instances 30] [--threads 2]

R50-FPN at 800 px with random weights, which finds the given number of instances on synthetic photos of 0.7 to 3
megapixels; then the same with SAM, from pixels in memory to RLE. Without --sam, SAM has random weights and the size of
sam-vit-base: it is as fast as the real one, and its masks are noise. Peaks are of this process, the plain one's first.

Then 100 smooth masks of 256 x 256 logits become RLE of photos of 2 and 12 megapixels, in turn with what a user would
run instead: transformers' `post_process_masks` and `pycocotools.mask.encode`, 10 masks at a time. Pixels that differ
are counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.bench_predict import PHOTO_SIZES, draw_pixels, make_checkpoint
from benchmarks.figures import print_figures
from benchmarks.memory import peak_mib
from model.checkpoint import load_checkpoint
from model.inference.sam import Frame, trace_logits
from model.spec import ModelSpec
from model.weights.sam import find_sam
from pipeline.bulk.encode import encode_instances, warm_up
from pipeline.bulk.predict import ImagePredictor, RefiningPredictor, SlicingPredictor
from pipeline.masks.rle import decode_rle, runs_to_counts
from pipeline.run_spec import RefineSpec, SegmentSpec

SIZES = {"1080 x 1920": (1080, 1920), "3000 x 4000": (3000, 4000)}
AT_ONCE = 10  # masks that the peer enlarges at a time: 100 of 12 megapixels would be 5 GB


def make_sam(folder: Path) -> None:
    """Saves a SAM of the size of sam-vit-base, with random weights."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    SamModel(SamConfig()).save_pretrained(folder)


def make_predictors(folder: Path, sam: str, options: argparse.Namespace) -> dict[str, Callable[[], SlicingPredictor]]:
    """What builds the predictor without SAM and with it."""
    make_checkpoint(folder / "model", ModelSpec(num_classes=90, norm="batch"))
    weights = find_sam(sam)
    plain = SegmentSpec(score_threshold=0.0, max_detections=options.instances)
    refine = RefineSpec(kind=weights.kind, revision=weights.revision, sha256=weights.sha256)
    settings = {
        "sha256": load_checkpoint(folder / "model").sha256,
        "batch_size": 1,
        "device": options.device,
        "num_threads": options.threads,
    }
    return {
        "plain": lambda: ImagePredictor(str(folder / "model"), segment=plain, **settings),
        "refined": lambda: RefiningPredictor(
            str(folder / "model"),
            inner=ImagePredictor,
            model=sam,
            boxes_at_once=options.boxes,
            segment=SegmentSpec(**{**vars(plain), "refine": refine}),
            **settings,
        ),
    }


def measure(predictor: SlicingPredictor, photos: list[np.ndarray]) -> dict[str, float]:
    """Images/s from pixels to RLE, the peak of the process so far, and instances an image."""
    warm_up()
    predictor.predict(photos[:1])
    started, count = time.perf_counter(), 0
    for photo in photos:
        (prediction,) = predictor.predict([photo])
        assert not isinstance(prediction, str), prediction
        columns = encode_instances(prediction, predictor.categories, photo.shape[:2], 0.5)
        count += len(columns["rle_counts"])
    seconds = time.perf_counter() - started
    return {"images/s": len(photos) / seconds, "peak MiB": peak_mib(), "instances": count / len(photos)}


def smooth_logits(count: int) -> torch.Tensor:
    """float32 [N, 256, 256]: a blob each, with an uneven outline."""
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.randn(count, 1, 24, 24), (256, 256), mode="bicubic")[:, 0]
    places = torch.rand(count, 3)
    grid = torch.arange(256)
    centre, radius = 40 + 176 * places[:, :2], 10 + 50 * places[:, 2] ** 2
    distance = torch.hypot(grid[:, None] - centre[:, :1, None], grid - centre[:, 1:, None])
    return (radius[:, None, None] - distance) / 4 + noise


def ours(logits: torch.Tensor, size: tuple[int, int], resized: tuple[int, int]) -> list[str]:
    """The RLE of masks as a worker makes it."""
    return runs_to_counts(*trace_logits(logits, Frame(size, resized, (1024, 1024)), 0.0))[0]


def peers(logits: torch.Tensor, size: tuple[int, int], resized: tuple[int, int]) -> list[str]:
    """The RLE of masks by the library and pycocotools."""
    from transformers import SamImageProcessor

    processor, counts = SamImageProcessor(), []
    for start in range(0, len(logits), AT_ONCE):
        (masks,) = processor.post_process_masks([logits[start : start + AT_ONCE, None]], [size], [resized])
        for mask in masks[:, 0].numpy():
            counts.append(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())
    return counts


def compare_masks(name: str, size: tuple[int, int], num_runs: int) -> dict[str, float]:
    """Medians of both ways in turn, and the pixels in which their masks differ."""
    logits, scale = smooth_logits(100), 1024 / max(size)
    resized = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    found: dict[str, list[str]] = {}
    for _ in range(num_runs):
        for way, encode in (("ours", ours), ("peer", peers)):
            started = time.perf_counter()
            found[way] = encode(logits, size, resized)
            seconds[way].append(time.perf_counter() - started)
    differ = sum(
        int((decode_rle(one, *size) != decode_rle(other, *size)).sum())
        for one, other in zip(found["ours"], found["peer"], strict=True)
        if one != other
    )
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    figures = {"ours s": medians["ours"], "peer s": medians["peer"], "ratio": medians["peer"] / medians["ours"]}
    return {f"100 masks, {name}: {key}": value for key, value in {**figures, "pixels that differ": differ}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", help="folder or name on the Hugging Face hub")
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--instances", type=int, default=30)
    parser.add_argument("--boxes", type=int, default=32, help="boxes in one pass of SAM's mask decoder")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(0)
    photos = [draw_pixels(random, *PHOTO_SIZES[index % len(PHOTO_SIZES)]) for index in range(options.photos)]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.sam is None:
            make_sam(folder / "sam")
        for name, build in make_predictors(folder, options.sam or str(folder / "sam"), options).items():
            figures |= {f"{name} {key}": value for key, value in measure(build(), photos).items()}
    figures["refined over plain"] = figures["refined images/s"] / figures["plain images/s"]
    for name, size in SIZES.items():
        figures |= compare_masks(name, size, options.runs)
    print_figures(figures)


if __name__ == "__main__":
    main()
