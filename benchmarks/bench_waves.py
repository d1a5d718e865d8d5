"""Memory of driver and workers over a run of many thousand shards, and how soon such a run goes on after a kill.

    python -m benchmarks.bench_waves --shards 20000 --plot docs/images/waves.png

The real bulk run with a predictor that finds nothing, on a local Ray: whatever grows with the number of shards shows.
Sampled once a second: the anonymous memory of the driver, of the process that a later wave has, of every worker, and
of the board. Then the last commit and the seal are removed, and the same call is timed until its worker begins the
missing shard.
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

KINDS = {"driver": "driver", "segment_wave": "wave", "MapWorker": "worker", "ProgressBoard": "board"}


class NullPredictor(ImagePredictor):
    """Finds nothing, at once."""

    def __init__(self, uri: str, **settings: Any) -> None:
        self.categories = ()

    def predict(self, images: Sequence[Any], sizes: Any = None) -> list[Prediction]:
        return ["not asked"] * len(images)


def job_of(folder: Path, num_workers: int) -> BulkJob:
    """One empty file a shard: what is measured is the run's own machinery."""
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
    """Samples every process's own memory once a second, until it is left."""

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
    """Anonymous memory: what a process shares of libraries' files depends on what else runs on the machine."""
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
    """The largest memory within the first wave that has such a process (the second for `wave`), and after it."""
    end = WAVE_SHARDS * (2 if kind == "wave" else 1)
    first = [row.get(kind, 0.0) for row in rows if row["shards"] <= end]
    later = [row.get(kind, 0.0) for row in rows if row["shards"] > end]
    return max(first, default=0.0), max(later, default=0.0)


def resume_after_a_kill(job: BulkJob, folder: Path, num_shards: int) -> float:
    """Seconds from the call on a run of which one shard is missing to the moment its worker begins it."""
    for name in ("final.json", "manifest.parquet", commit_key(num_shards - 1)):
        (folder / "run" / name).unlink()
    attempts = folder / "run" / "attempts" / f"{num_shards - 1:09d}"
    before = len(list(attempts.iterdir()))
    started, begun = time.monotonic(), []

    def watch() -> None:
        while len(list(attempts.iterdir())) == before:
            time.sleep(0.01)
        begun.append(time.monotonic() - started)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    segment_corpus(job)
    watcher.join()
    return begun[0]


def draw_plot(rows: list[dict[str, float]], path: Path) -> None:
    """Memory over shards, a line for each kind of process."""
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
    given = parser.parse_args()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", num_cpus=given.workers, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="maskfleet-waves-") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for number in range(given.shards):
            (folder / "photos" / f"{number:06d}.jpg").touch()
        job = job_of(folder, given.workers)
        started = time.monotonic()
        with MemorySamples() as samples:
            segment_corpus(job, lambda progress: setattr(samples, "num_done", progress.num_done))
        seconds = time.monotonic() - started
        print(f"{given.shards:,} shards in {seconds:.0f} s, {given.shards / seconds:.0f} shards/s")
        print("| process | first wave, peak | later, peak | growth |\n|---|---|---|---|")
        figures = {"shards/s": given.shards / seconds}
        for kind in KINDS.values():
            first, later = peaks(samples.rows, kind)
            print(f"| {kind} | {first:.0f} MiB | {later:.0f} MiB | {later / first - 1:+.1%} |")
            figures |= {f"{kind} first MiB": first, f"{kind} later MiB": later, f"{kind} growth": later / first - 1}
        figures["resume s"] = resume_after_a_kill(job, folder, given.shards)
        print(f"resume: the missing shard is begun after {figures['resume s']:.1f} s")
        if given.plot:
            draw_plot(samples.rows, given.plot)
    print_figures(figures)


if __name__ == "__main__":
    main()
