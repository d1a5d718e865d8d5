"""COCO evaluation of a run's Parquet against pycocotools on COCO JSON, on a set of COCO val's size.

    python -m benchmarks.bench_evaluate [--folder F] [--images 5000] [--objects 36000] [--detections 100] [--runs 3]

Both sides evaluate the masks of the same predictions, in turn, and must give the same twelve figures; ratios are
medians over the runs. Each measurement has its own process. The time is that from the first byte read to the twelve
figures, without Python's start and imports. Peak memory is the process's largest resident size (imports included).
Drawing the synthetic set takes a minute; it is kept in FOLDER for later runs. An unmeasured run fills numba's cache
first; loading the compiled kernels from the cache is timed.

The last pair are two whole commands from the shell that evaluate boxes and masks, with Python's start and imports:
`maskfleet evaluate`, and benchmarks/peer_evaluate.py, which does the same with pycocotools from JSON.
"""

from __future__ import annotations

import argparse
import json
import os
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
COMMAND, PEER_COMMAND = "maskfleet evaluate", "script with pycocotools"


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Seconds, CPU seconds, peak MiB and COCO's twelve figures of one side, measured in this process."""
    run, truth, results = str(folder / "run"), str(folder / "truth.json"), str(folder / "results.json")
    import pandas  # noqa: F401

    if side == "parquet":
        from pipeline.evaluation import kernel
        from pipeline.evaluation.coco import match_coco
        from pipeline.evaluation.ground_truth import Truth
        from pipeline.evaluation.iou import find_overlaps
        from pipeline.evaluation.run_detections import COLUMNS, MASK_COLUMNS, align
        from pipeline.tables import load_images, load_table

        started, cpu = time.perf_counter(), time.process_time()
        ground_truth = Truth.load(truth)
        images = load_images(run, ["image_id", "status"])
        table, _ = align(load_table("instances", run, [*COLUMNS, *MASK_COLUMNS]), images, ground_truth)
        stats = match_coco(ground_truth, table, find_overlaps(ground_truth, table, "segm")).result().stats
    elif side == "parquet, evaluate_run":
        from pipeline.evaluation import kernel  # noqa: F401
        from pipeline.evaluation.metrics import evaluate_run

        started, cpu = time.perf_counter(), time.process_time()
        stats = evaluate_run(run, truth, iou_types=["segm"]).coco["segm"].stats
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        sys.stdout = open("/dev/null", "w")  # hides its progress output
        started, cpu = time.perf_counter(), time.process_time()
        coco_truth = COCO(truth)
        evaluator = COCOeval(coco_truth, coco_truth.loadRes(results), "segm")
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


def measure_command(command: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak MiB of a whole command.

    Linux starts a child's peak at its parent's resident size, from before the child loads its own program. So this
    process must stay small.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def compare_commands(folder: Path, runs: int) -> dict[str, float]:
    """Figures of the two whole commands, run in turn; ratios are medians over the runs."""
    program = [str(Path(sys.executable).parent / "maskfleet"), "evaluate", str(folder / "run")]
    peer_program = [sys.executable, str(Path(__file__).parent / "peer_evaluate.py")]
    commands = {
        COMMAND: [*program, f"ground_truth.uri={folder / 'truth.json'}"],
        PEER_COMMAND: [*peer_program, str(folder / "truth.json"), str(folder / "results.json")],
    }
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in commands}
    for _ in range(runs):
        for side, command in commands.items():
            measured[side].append(measure_command(command))
            print(
                json.dumps({"side": side, **{key: round(value, 3) for key, value in measured[side][-1].items()}}),
                flush=True,
            )
    pairs = list(zip(measured[COMMAND], measured[PEER_COMMAND], strict=True))
    figures = {
        f"{side}: {key}": statistics.median(run[key] for run in rows)
        for side, rows in measured.items()
        for key in rows[0]
    }
    figures[f"{COMMAND}: ratio"] = statistics.median(peer["seconds"] / ours["seconds"] for ours, peer in pairs)
    figures[f"{COMMAND}: memory_ratio"] = statistics.median(ours["peak_mib"] / peer["peak_mib"] for ours, peer in pairs)
    print(
        f"{COMMAND}, from the shell: {figures[f'{COMMAND}: ratio']:.1f}x faster than {PEER_COMMAND}, "
        f"{figures[f'{COMMAND}: memory_ratio']:.2f} of the memory"
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "maskfleet_bench_evaluate")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print JSON")
    parser.add_argument("--draw", action="store_true", help="draw the set, compile the kernels, and end")
    parser.add_argument("--only-commands", action="store_true", help="measure the whole commands only")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    if arguments.draw:
        from benchmarks.drawn_predictions import draw

        sizes = {"num_images": arguments.images, "num_objects": arguments.objects, "detections": arguments.detections}
        draw(arguments.folder, **sizes)
        measure("parquet, evaluate_run", arguments.folder)  # compiles the kernels unless numba's cache has them
        return
    # Drawing has its own process, because this one must stay small: see `measure_command`.
    subprocess.run([sys.executable, "-m", "benchmarks.bench_evaluate", "--draw", *sys.argv[1:]], check=True)
    if arguments.only_commands:
        print_figures(compare_commands(arguments.folder, arguments.runs))
        return
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.runs):
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_evaluate", "--side", side]
            completed = subprocess.run(
                [*command, "--folder", str(arguments.folder)], check=True, capture_output=True, text=True
            )
            measured[side].append(json.loads(completed.stdout))
            printed = {key: round(value, 3) for key, value in measured[side][-1].items() if key != "stats"}
            print(json.dumps({"side": side, **printed}), flush=True)
    peer = measured["pycocotools"]
    expected_stats = peer[0]["stats"]
    figures: dict[str, float] = {}
    for side, runs in measured.items():
        max_difference = max(
            abs(value - expected) for run in runs for value, expected in zip(run["stats"], expected_stats, strict=True)
        )
        ratio, memory_ratio = (
            statistics.median(peer_run[key] / run[key] for run, peer_run in zip(runs, peer, strict=True))
            for key in ("seconds", "peak_mib")
        )
        median = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "peak_mib")}
        for key, value in median.items():
            figures[f"{side}: {key}"] = value
        if side != "pycocotools":
            figures[f"{side}: ratio"] = ratio
            figures[f"{side}: memory_ratio"] = 1 / memory_ratio
            figures[f"{side}: differs_by"] = max_difference
        print(
            f"{side:24} {median['seconds']:8.2f} s {median['cpu_seconds']:8.2f} s CPU {median['peak_mib']:7.0f} MiB  "
            f"{ratio:6.1f}x faster, {1 / memory_ratio:.2f} of the memory, figures differ by {max_difference:.1e} "
            f"(segm AP {expected_stats[0]:.6f})"
        )
    figures |= compare_commands(arguments.folder, arguments.runs)
    print_figures(figures)


if __name__ == "__main__":
    main()
