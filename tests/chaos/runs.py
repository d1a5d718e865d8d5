"""Bulk runs as programs of their own, to be killed, paused and compared; and what must hold of a run at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import prepare_segment, run_segment
from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run
from pipeline.storage.base import StorageSettings
from pipeline.storage.stores import use_settings
from pipeline.tables import load_images, load_instances
from tests.paths import ROOT

SMALL = ("corpus.shard_size=3", "segment.cpus_per_worker=1", "segment.max_detections=10")


def words_of(checkpoint: Path, photos: Path | str, out: Path | str, *words: str) -> list[str]:
    """The words of a `maskfleet segment` over small shards, so that there is much to be cut off in between."""
    return [*SMALL, f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}", *words]


def start(checkpoint: Path, photos: Path | str, out: Path | str, *words: str, **environment: str) -> subprocess.Popen:
    """`maskfleet segment` as a program of its own, in a session of its own, on a Ray of its own."""
    own_ray = [] if any(word.startswith("cluster.address=") for word in words) else ["cluster.num_cpus=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "segment", *own_ray, *words_of(checkpoint, photos, out, *words)],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a program's end, which must be this one; returns what it said."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def segment_here(checkpoint: Path, photos: Path | str, out: Path | str, *words: str) -> dict:
    """The same within this process, on the Ray that it has."""
    config = load_config(SegmentConfig, None, words_of(checkpoint, photos, out, *words))
    use_settings(config.storage.to_settings())
    try:
        return run_segment(prepare_segment(config))
    finally:
        use_settings(None)


def descendants(pid: int) -> list[int]:
    """Every process below one, by the kernel's own tables."""
    try:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found + [deeper for child in found for deeper in descendants(child)]


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes of a program's segmenting actors, which Ray names after what they run."""
    return [pid for pid in descendants(process.pid) if b"ShardWorker" in _command_of(pid)]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def send(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to processes, some of which may be gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill_everything(process: subprocess.Popen) -> None:
    """`kill -9` of the driver and of Ray's own processes and workers at the same moment, as a power cut would."""
    send([process.pid, *descendants(process.pid)], signal.SIGKILL)
    process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None, timeout_s: float = 300) -> bool:
    """Waits until something holds; False when the program ended first."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < give_up, "nothing happened for too long"
        time.sleep(0.01)
    return True


def commits_of(out: Path) -> list[Path]:
    """The commits of a run on this disk."""
    return list(out.glob("commits/*/*.json"))


def rows_of(uri: str) -> list[pd.DataFrame]:
    """A run's two tables as readers see them, in an order that does not depend on how they were written."""
    tables = (load_images(uri), load_instances(uri))
    keys = (["image_id"], ["image_id", "instance"])
    return [table.sort_values(key, ignore_index=True) for table, key in zip(tables, keys)]


def check_exact(
    out: Path | str, expected: Path | str, settings: StorageSettings | None = None, *, ignore: tuple[str, ...] = ()
) -> None:
    """Same images, same instances, every hash right, no file unaccounted for, nothing half written.

    Args:
        settings: how the buckets of both are reached.
        ignore: columns that differ for a reason the test knows.
    """
    use_settings(settings)
    try:
        for ours, theirs in zip(rows_of(str(out)), rows_of(str(expected))):
            columns = [column for column in ours.columns if column not in ignore]
            pd.testing.assert_frame_equal(ours[columns], theirs[columns])
        run = open_run(str(out))
        faults = list(verify_run(run))
        assert faults == [], faults
        assert run.storage.remove_unfinished() == []
    finally:
        use_settings(None)
