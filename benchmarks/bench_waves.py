"""Memory growth of a bulk run's processes over thousands of shards, and its resume time; no peer.

    python -m benchmarks.bench_waves --shards 20000 --plot docs/images/waves.png

The bulk run has a predictor that finds nothing, on a local Ray, so that memory which grows with the number of shards
shows. Once a second it samples the anonymous memory of the driver, of the process that each wave after the first has,
of every worker, and of the progress board. Then the last commit and the seal are removed, as after a kill, and the same
call is timed until its worker begins the missing shard.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import ray

from benchmarks.figures import print_figures
from pipeline.bulk.predict import ImagePredictor, Prediction
from pipeline.bulk.run import WAVE_SHARDS, segment_corpus
from pipeline.bulk.worker import BulkJob
from pipeline.images.decode_pool import DecodeLimits
from pipeline.manifest import commit_key
from pipeline.run_spec import InputSpec, RunModel, RunSpec, SegmentSpec
from pipeline.schema import SCHEMA_VERSION

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Part of a process's name: the kind of process in the figures.
KINDS = {"driver": "driver", "segment_wave": "wave", "MapWorker": "worker", "ProgressBoard": "board"}


class NullPredictor(ImagePredictor):
    """A predictor that returns an error for each image without any work."""

    def __init__(self, uri: str, **settings: Any) -> None:
        self.categories = ()

    def predict(self, images: Sequence[Any], sizes: Any = None) -> list[Prediction]:
        return ["not asked"] * len(images)


def job_of(folder: Path, num_workers: int) -> BulkJob:
    """A bulk job of one empty file per shard, which measures the run's own overhead."""
    return BulkJob(
        output_uri=str(folder / "run"),
        spec=RunSpec(
            schema_version=SCHEMA_VERSION,
            input=InputSpec(uri=str(folder / "photos")),
            model=RunModel(sha256="0" * 64, spec={"in_channels": 3}),
            segment=SegmentSpec(score_threshold=0.5),
        ),
        metadata={},
        checkpoint="",
        limits=DecodeLimits(),
        shard_size=1,
        batch_size=1,
        num_workers=(num_workers, num_workers),
        cpus_per_worker=1,
        gpus_per_worker=0,
        decode_children=1,
        predictor=NullPredictor,
    )


class MemorySamples:
    """Samples the anonymous memory of this process and its children once a second, inside a `with` block."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.num_done = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def __enter__(self) -> MemorySamples:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def sample(self) -> None:
        driver = psutil.Process()
        while not self.ended.wait(1.0):
            row: dict[str, float] = {"shards": self.num_done, "driver": _own_mib(driver)}
            for process in driver.children(recursive=True):
                name = _name_of(process)
                kind = next((KINDS[part] for part in KINDS if name.startswith("ray::") and part in name), None)
                if kind:
                    row[kind] = max(row.get(kind, 0.0), _own_mib(process))
            self.rows.append(row)


def _own_mib(process: psutil.Process) -> float:
    """Anonymous memory in MiB. Shared pages of library files do not count: they depend on the machine's other load."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:  # it has ended
        return 0.0
    anonymous = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(anonymous[0]) / 1024 if anonymous else 0.0


def _name_of(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def peaks(rows: list[dict[str, float]], kind: str) -> tuple[float, float]:
    """Peak MiB up to the end of the first wave with such a process (for `wave` the second wave), and after it."""
    end = WAVE_SHARDS * (2 if kind == "wave" else 1)
    first = [row.get(kind, 0.0) for row in rows if row["shards"] <= end]
    later = [row.get(kind, 0.0) for row in rows if row["shards"] > end]
    return max(first, default=0.0), max(later, default=0.0)


def resume_after_a_kill(job: BulkJob, folder: Path, num_shards: int) -> float:
    """Seconds from the call on a run with one missing shard to the start of that shard in its worker."""
    for name in ("final.json", "manifest.parquet", commit_key(num_shards - 1)):
        (folder / "run" / name).unlink()
    attempts = folder / "run" / "attempts" / f"{num_shards - 1:09d}"
    num_before = len(list(attempts.iterdir()))
    started, begun_s = time.monotonic(), list[float]()

    def watch() -> None:
        while len(list(attempts.iterdir())) == num_before:
            time.sleep(0.01)
        begun_s.append(time.monotonic() - started)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    segment_corpus(job)
    watcher.join()
    return begun_s[0]


def draw_plot(rows: list[dict[str, float]], path: Path) -> None:
    """Plots memory over committed shards, a line for each kind of process."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for kind in KINDS.values():
        axes.plot([row["shards"] for row in rows], [row.get(kind, float("nan")) for row in rows], label=kind)
    for wave in range(WAVE_SHARDS, int(rows[-1]["shards"]) + 1, WAVE_SHARDS):
        axes.axvline(wave, color="0.9", zorder=0)
    axes.set(xlabel="shards committed", ylabel="anonymous memory, MiB", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="maskfleet-waves-") as temporary:
        folder = Path(temporary)
        (folder / "photos").mkdir()
        for number in range(options.shards):
            (folder / "photos" / f"{number:06d}.jpg").touch()
        job = job_of(folder, options.workers)
        started = time.monotonic()
        with MemorySamples() as samples:
            segment_corpus(job, lambda progress: setattr(samples, "num_done", progress.num_done))
        seconds = time.monotonic() - started
        print(f"{options.shards:,} shards in {seconds:.0f} s, {options.shards / seconds:.0f} shards/s")
        print("| process | first wave, peak | later, peak | growth |\n|---|---|---|---|")
        figures = {"shards/s": options.shards / seconds}
        for kind in KINDS.values():
            first, later = peaks(samples.rows, kind)
            print(f"| {kind} | {first:.0f} MiB | {later:.0f} MiB | {later / first - 1:+.1%} |")
            figures |= {f"{kind} first MiB": first, f"{kind} later MiB": later, f"{kind} growth": later / first - 1}
        figures["resume s"] = resume_after_a_kill(job, folder, options.shards)
        print(f"resume: the missing shard is begun after {figures['resume s']:.1f} s")
        if options.plot:
            draw_plot(samples.rows, options.plot)
    print_figures(figures)


if __name__ == "__main__":
    main()
