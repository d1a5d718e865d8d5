"""Segm evaluation of a set of COCO val's size: a run's Parquet here, COCO JSON with pycocotools there.

    python -m benchmarks.bench_evaluate [--folder F] [--images 5000] [--objects 36000] [--detections 100] [--runs 3]

Both sides evaluate the same predictions, in turn, and must give the same twelve figures; ratios are medians over the
runs. Each measurement is a process of its own, and what is timed is the work: from the first byte read to the twelve
figures, without starting Python or importing. Peak memory is the process's largest resident size (imports included).
Drawing the set takes a minute and is kept in FOLDER for the next time. A run that is not measured fills numba's cache
first; loading from it is timed.

The last pair is two whole commands from the shell, start and imports included, boxes and masks both: `maskfleet
evaluate`, and benchmarks/peer_evaluate.py, which does the same with pycocotools from JSON.
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


def measure_command(words: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak MiB of a whole command.

    Linux counts what the parent held before the command's own program was loaded, so this process must stay small.
    """
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def compare_commands(folder: Path, runs: int) -> dict[str, float]:
    """Both commands in turn; ratios are medians over the runs."""
    program = [str(Path(sys.executable).parent / "maskfleet"), "evaluate", str(folder / "run")]
    peer = [sys.executable, str(Path(__file__).parent / "peer_evaluate.py")]
    commands = {
        COMMAND: [*program, f"ground_truth.uri={folder / 'truth.json'}"],
        PEER_COMMAND: [*peer, str(folder / "truth.json"), str(folder / "results.json")],
    }
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in commands}
    for _ in range(runs):
        for side, words in commands.items():
            measured[side].append(measure_command(words))
            print(json.dumps({"side": side, **{k: round(v, 3) for k, v in measured[side][-1].items()}}), flush=True)
    pairs = list(zip(measured[COMMAND], measured[PEER_COMMAND], strict=True))
    figures = {
        f"{side}: {key}": statistics.median(run[key] for run in rows)
        for side, rows in measured.items()
        for key in rows[0]
    }
    figures[f"{COMMAND}: ratio"] = statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    figures[f"{COMMAND}: memory_ratio"] = statistics.median(a["peak_mib"] / b["peak_mib"] for a, b in pairs)
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
        measure("parquet, evaluate_run", arguments.folder)  # compiles, if need be
        return
    # In a process of its own: this one must stay small, see `measure_command`.
    subprocess.run([sys.executable, "-m", "benchmarks.bench_evaluate", "--draw", *sys.argv[1:]], check=True)
    if arguments.only_commands:
        print_figures(compare_commands(arguments.folder, arguments.runs))
        return
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
    figures |= compare_commands(arguments.folder, arguments.runs)
    print_figures(figures)


if __name__ == "__main__":
    main()
