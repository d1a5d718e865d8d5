"""Segm evaluation of a set of COCO val's size: a run's Parquet here, COCO JSON with pycocotools there.

    python -m benchmarks.bench_evaluate [--folder F] [--images 5000] [--objects 36000] [--detections 100] [--runs 3]

Both sides evaluate the same predictions, in turn, and must give the same twelve figures; ratios are medians over the
runs. Each measurement is a process of its own, and what is timed is the work: from the first byte read to the twelve
figures, without starting Python or importing. Peak memory is the process's largest resident size (imports included).
Drawing the set takes a minute and is kept in FOLDER for the next time. A run that is not measured fills numba's cache
first; loading from it is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figures
from benchmarks.memory import peak_mib

SIDES = ("parquet", "parquet, evaluate_run", "pycocotools")


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Seconds, CPU seconds, peak MiB and figures of one side, in this process."""
    run, truth, results = str(folder / "run"), str(folder / "truth.json"), str(folder / "results.json")
    import pandas  # noqa: F401

    if side == "parquet":
        from pipeline.evaluation import kernel
        from pipeline.evaluation.coco import evaluate_table
        from pipeline.evaluation.ground_truth import Truth
        from pipeline.evaluation.run_detections import COLUMNS, MASK_COLUMNS, align
        from pipeline.tables import load_images, load_table

        started, cpu = time.perf_counter(), time.process_time()
        known = Truth.load(truth)
        images = load_images(run, ["image_id", "status"])
        table, _ = align(load_table("instances", run, [*COLUMNS, *MASK_COLUMNS]), images, known)
        stats = evaluate_table(known, table, "segm", backend="compiled").stats
    elif side == "parquet, evaluate_run":
        from pipeline.evaluation import kernel  # noqa: F401
        from pipeline.evaluation.metrics import evaluate_run

        started, cpu = time.perf_counter(), time.process_time()
        stats = evaluate_run(run, truth, iou_types=["segm"]).coco["segm"].stats
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        sys.stdout = open("/dev/null", "w")  # its progress
        started, cpu = time.perf_counter(), time.process_time()
        known = COCO(truth)
        evaluator = COCOeval(known, known.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        stats = evaluator.stats
        sys.stdout = sys.__stdout__
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib(),
        "stats": [float(value) for value in stats],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "maskfleet_bench_evaluate")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    from benchmarks.drawn_predictions import draw

    draw(
        arguments.folder,
        num_images=arguments.images,
        num_objects=arguments.objects,
        detections=arguments.detections,
    )
    measure("parquet", arguments.folder)  # compiles, if need be
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.runs):
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_evaluate", "--side", side]
            answer = subprocess.run(
                [*command, "--folder", str(arguments.folder)], check=True, capture_output=True, text=True
            )
            found[side].append(json.loads(answer.stdout))
            shown = {key: round(value, 3) for key, value in found[side][-1].items() if key != "stats"}
            print(json.dumps({"side": side, **shown}), flush=True)
    peer = found["pycocotools"]
    want = peer[0]["stats"]
    figures: dict[str, float] = {}
    for side, runs in found.items():
        worst = max(abs(a - b) for run in runs for a, b in zip(run["stats"], want, strict=True))
        ratio, memory_ratio = (
            statistics.median(b[key] / a[key] for a, b in zip(runs, peer, strict=True))
            for key in ("seconds", "peak_mib")
        )
        median = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "peak_mib")}
        for key, value in median.items():
            figures[f"{side}: {key}"] = value
        if side != "pycocotools":
            figures[f"{side}: ratio"] = ratio
            figures[f"{side}: memory_ratio"] = 1 / memory_ratio
            figures[f"{side}: differs_by"] = worst
        print(
            f"{side:24} {median['seconds']:8.2f} s {median['cpu_seconds']:8.2f} s CPU {median['peak_mib']:7.0f} MiB  "
            f"{ratio:6.1f}x faster, {1 / memory_ratio:.2f} of the memory, figures differ by {worst:.1e} "
            f"(segm AP {want[0]:.6f})"
        )
    print_figures(figures)


if __name__ == "__main__":
    main()
