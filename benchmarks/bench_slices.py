"""Time and peak memory of sliced prediction of huge images; its peer is a quarter as many slices.

    python -m benchmarks.bench_slices [--runs 5] [--threads 2] [--side 10000]

The tiny network has random weights that find 25 instances in each slice. First it predicts 100 and 400 slices of 256 px
in turn, from pixels in memory to merged RLE masks: total time, and the time of merging and encoding alone. Then the
bulk run segments one synthetic JPEG of 10,000 x 10,000 px in slices of 1,024 px: seconds from the ready actor to the
commit, and the actor's peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.bench_predict import draw_pixels, make_checkpoint, make_predictor, segment_ours, start_ray
from benchmarks.figures import print_figures
from model.spec import ModelSpec
from pipeline.bulk.encode import encode_instances, warm_up
from pipeline.bulk.predict import ImagePredictor
from pipeline.images.slices import SlicedDetections
from pipeline.run_spec import Slicing

SLICING = Slicing(size=256, overlap=64, merge_iou=0.5)
MAX_INSTANCES_PER_SLICE = 25
GRIDS = {100: 10, 400: 20}  # number of slices: slices along each side


def side_of(num_along: int) -> int:
    """Side in pixels of an image that is cut into `num_along` x `num_along` slices."""
    return SLICING.size + (num_along - 1) * (SLICING.size - SLICING.overlap)


def measure(predictor: ImagePredictor, pixels: np.ndarray, num_slices: int) -> dict[str, float]:
    """Total seconds, seconds of merging and encoding, and number of instances, of one image."""
    started = time.perf_counter()
    (detections,) = predictor.predict([pixels])
    predicted = time.perf_counter()
    assert isinstance(detections, SlicedDetections) and len(detections.slices) == num_slices
    columns = encode_instances(detections, predictor.categories, pixels.shape[:2], 0.5, SLICING.merge_iou)
    ended = time.perf_counter()
    return {"seconds": ended - started, "merge_s": ended - predicted, "instances": len(columns["rle_counts"])}


def compare_grids(checkpoint: str, num_runs: int, num_threads: int) -> dict[str, float]:
    """Medians over the runs of both numbers of slices, in turn, and their ratios."""
    predictor = make_predictor(
        checkpoint, max_detections=MAX_INSTANCES_PER_SLICE, batch_size=4, num_threads=num_threads, slicing=SLICING
    )
    warm_up()
    random = np.random.default_rng(0)
    images = {num: draw_pixels(random, side_of(along), side_of(along)) for num, along in GRIDS.items()}
    measure(predictor, images[100], 100)
    rounds = []
    for _ in range(num_runs):
        row = {
            f"{num} slices {name}": value
            for num, pixels in images.items()
            for name, value in measure(predictor, pixels, num).items()
        }
        row |= {
            f"{name} 400 over 100": row[f"400 slices {name}"] / row[f"100 slices {name}"]
            for name in ("seconds", "merge_s")
        }
        print(json.dumps({name: round(value, 3) for name, value in row.items()}), flush=True)
        rounds.append(row)
    return {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}


def segment_huge(folder: Path, side: int, num_threads: int) -> dict[str, float]:
    """Seconds, peak memory and instances of the bulk run over one JPEG of `side` x `side` px."""
    photos = folder / "photos"
    photos.mkdir()
    Image.fromarray(draw_pixels(np.random.default_rng(1), side, side)).save(photos / "huge.jpg", quality=90)
    overrides = ["segment.slice.size=1024", "segment.slice.overlap=128"]
    totals = segment_ours(
        str(photos),
        str(folder / "model"),
        folder / "run",
        *overrides,
        mode="exact",
        batch_size=4,
        num_threads=num_threads,
    )
    assert totals["statuses"] == {"ok": 1}, totals
    return {f"{side} px {name}": totals[name] for name in ("seconds", "peak_mib", "num_instances")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoint(folder / "model", ModelSpec.tiny(num_classes=3))
        figures = compare_grids(str(folder / "model"), options.runs, options.threads)
        start_ray(options.threads)
        figures |= segment_huge(folder, options.side, options.threads)
    print_figures(figures)


if __name__ == "__main__":
    main()
