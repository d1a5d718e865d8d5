"""Benchmark runner: runs each benchmark in its own process and writes JSON, a table and a plot of the ratios.

    make bench
    python -m benchmarks --list
    python -m benchmarks predict-r50 latency --out /tmp/figures

Without names all benchmarks run. `--out` (benchmarks/results) receives one JSON file for each benchmark, with its
figures, command, commit and machine; tables.md, a section for each JSON file in that folder; and ratios.png, each ratio
against a peer beside its goal. If a benchmark fails, its name is printed, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Bench:
    """A benchmark module of this folder, its command-line arguments, and the goals (minima) of some of its figures."""

    module: str
    arguments: tuple[str, ...] = ()
    goals: tuple[tuple[str, float], ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line as a user types it."""
        return ["python", "-m", f"benchmarks.{self.module}", *self.arguments]


BENCHES = {
    "rle": Bench(
        "bench_rle",
        goals=(
            ("100 instances, 1080 x 1920: ratio", 400),
            ("100 instances, 3000 x 4000: ratio", 1500),
        ),
    ),
    "decode": Bench("bench_decode"),
    "predict-r50": Bench(
        "bench_predict",
        goals=(("exact_ratio", 1.8), ("fast_ratio", 3.5), ("end_to_end_over_predictor_alone", 0.9)),
    ),
    "predict-tiny": Bench("bench_predict", ("--tiny",), (("exact_ratio", 3.0),)),
    "latency": Bench(
        "bench_latency",
        goals=tuple((f"{name} exact p{q} ratio", 1.5) for name in ("resnet50", "mobilenet_v3_large") for q in (50, 99)),
    ),
    "engines": Bench("bench_engines"),
    "annotations": Bench("bench_annotations", goals=(("time_ratio", 1.0), ("memory_ratio", 1.0))),
    "device": Bench("gpu_check", ("--full", "fast", "latency")),
    "memory": Bench("bench_memory"),
    "slices": Bench("bench_slices"),
    "refine": Bench("bench_refine"),
    "evaluate": Bench(
        "bench_evaluate",
        goals=(("parquet: ratio", 30), ("parquet, evaluate_run: ratio", 30), ("maskfleet evaluate: ratio", 20)),
    ),
    "query": Bench("bench_query"),
    "plan": Bench("bench_plan"),
    "waves": Bench("bench_waves", ("--plot", "docs/images/waves.png")),
    "train": Bench("bench_train"),
}


def run(name: str, extra_arguments: list[str]) -> dict[str, Any] | None:
    """Runs one benchmark and passes on its output; returns its record, or None if it failed."""
    command = [*BENCHES[name].command, *extra_arguments]
    print(f"== {name}: {' '.join(command)}", flush=True)
    started, load = time.monotonic(), os.getloadavg()[0]
    process = subprocess.Popen(
        [sys.executable, *command[1:]], stdout=subprocess.PIPE, text=True, cwd=HERE.parent, env=environment()
    )
    assert process.stdout is not None
    figures = None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith('{"figures"'):
            figures = json.loads(line)["figures"]
    if process.wait() or figures is None:
        print(f"== {name} failed with exit code {process.returncode}", flush=True)
        return None
    return {
        "command": " ".join(command),
        "commit": commit(),
        "machine": machine(),
        "load_average": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
        "seconds": round(time.monotonic() - started),
        "figures": figures,
    }


def environment() -> dict[str, str]:
    """The environment of this process, with Ray's own logging limited to fatal errors unless it is set."""
    return {"RAY_BACKEND_LOG_LEVEL": "fatal", **os.environ}


def commit() -> str:
    """The abbreviated commit that is measured, with `-dirty` if files differ from it; 'unknown' without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    completed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return completed.stdout.strip() or "unknown"


def machine() -> str:
    """Processor model, number of cores and memory size, as text."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    parts = [models[0] if models else platform.processor(), f"{os.cpu_count()} cores"]
    return ", ".join([*parts, *(f"{size:.0f} GiB" for size in memory)])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux
        return []


def write_tables(records: dict[str, dict[str, Any]], out: Path) -> None:
    """Writes tables.md: a section for each benchmark, with its figures and their goals."""
    sections = ["# Figures\n\nWritten by `make bench`; what they mean is in [README.md](../README.md).\n"]
    for name, record in records.items():
        load = record["load_average"]
        goals = dict(BENCHES[name].goals)
        sections.append(
            f"## {name}\n\n    {record['command']}\n\nCommit {record['commit']}, {record['machine']}, load average "
            f"{load['before']} before and {load['after']} after, {record['seconds']} s.\n\n"
            "| figure | value | to reach |\n|---|---|---|\n"
            + "".join(
                f"| {figure} | {value:,g} | {format(goals[figure], 'g') if figure in goals else ''} |\n"
                for figure, value in record["figures"].items()
            )
        )
    (out / "tables.md").write_text("\n".join(sections))


def draw_ratios(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Plots each figure that has a goal as a bar, and the goal as a mark; no file if there is none."""
    rows = [
        (f"{name}: {figure}", record["figures"][figure], goal)
        for name, record in records.items()
        for figure, goal in BENCHES[name].goals
        if figure in record["figures"]
    ]
    if not rows:
        return
    names, values, goals = zip(*reversed(rows), strict=True)
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.32 * len(rows)), layout="constrained")
    colours = ["tab:green" if value >= goal else "tab:orange" for value, goal in zip(values, goals, strict=True)]
    axes.barh(names, values, color=colours)
    axes.plot(goals, range(len(goals)), "k|", markersize=14, label="to reach")
    for row, value in enumerate(values):
        label = f" {value:,.0f}" if value >= 100 else f" {value:.3g}"
        axes.annotate(label, (value, row), va="center")
    axes.set(xscale="log", xlabel="times the peer of the same run")
    axes.margins(x=0.15)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which, see --list; all if none is given")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    parser.add_argument("--images", help="folder of photos for predict-r50 instead of drawn ones")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHES)}")
    if options.list:
        for name, bench in BENCHES.items():
            print(f"{name:14} {' '.join(bench.command)}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.names or BENCHES:
        extra_arguments = ["--images", options.images] if options.images and name == "predict-r50" else []
        record = run(name, extra_arguments)
        if record is None:
            failed.append(name)
        else:
            (options.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    record_paths = {name: options.out / f"{name}.json" for name in BENCHES}
    records = {name: json.loads(path.read_text()) for name, path in record_paths.items() if path.exists()}
    write_tables(records, options.out)
    draw_ratios(records, options.out / "ratios.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
