"""Bulk runs as separate programs that can be killed, paused and compared, and the checks of a finished run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import prepare_segment, run_segment
from pipeline.bulk.verify import verify_run
from pipeline.manifest import Run, RunTotals, open_run
from pipeline.storage.base import StorageSettings
from pipeline.tables import load_images, load_instances
from tests.paths import ROOT

MARK = "MASKFLEET_TEST_PROGRAM"  # a variable that all processes of a program inherit
SMALL = ("corpus.shard_size=3", "segment.cpus_per_worker=1", "segment.max_detections=10")


def words_of(checkpoint: Path, photos: Path | str, out: Path | str, *words: str) -> list[str]:
    """The words of a `maskfleet segment` with small shards, so that a fault can fall between many commits."""
    return [*SMALL, f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}", *words]


def start(
    checkpoint: Path, photos: Path | str, out: Path | str, *words: str, **environment: str
) -> subprocess.Popen[str]:
    """Starts `maskfleet segment` as a program in its own process group, on its own Ray unless an address is given."""
    own_ray = [] if any(word.startswith("cluster.address=") for word in words) else ["cluster.num_cpus=2"]
    return start_program("segment", *own_ray, *words_of(checkpoint, photos, out, *words), **environment)


def start_program(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `maskfleet WORDS` in a process group of its own, whose signals do what they do in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "maskfleet", *words],
        cwd=ROOT,
        env={**os.environ, MARK: uuid.uuid4().hex, **environment},
        preexec_fn=as_in_a_terminal,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def as_in_a_terminal() -> None:
    """In a new process: no signal that ends a command is ignored, as they may be where the tests run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def is_listening(process: subprocess.Popen[str]) -> bool:
    """Whether a program takes SIGTERM, which Python by itself does not: it is past the start of Python."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)
    return False


class Family:
    """A program of `start_program` and all processes that it has started, whoever is their parent by now."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        self.mark = next(entry for entry in entries if entry.startswith(MARK.encode()))

    def alive(self) -> list[int]:
        """The ids of its processes that run."""
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if self.mark in (folder / "environ").read_bytes().split(b"\0"):  # empty once it has ended
                    alive.append(int(folder.name))
        return alive


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for a program's end; returns its output. `code` is the exit code it must have."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def segment_here(checkpoint: Path, photos: Path | str, out: Path | str, *words: str) -> RunTotals:
    """Runs `maskfleet segment` in this process, on the Ray that it has; returns the run's totals."""
    config = load_config(SegmentConfig, None, words_of(checkpoint, photos, out, *words))
    return run_segment(prepare_segment(config))


def descendants(pid: int) -> list[int]:
    """The ids of all processes below one, whichever of its threads started them, as /proc lists them."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += map(int, file.read_text().split())
    return children + [pid for child in children for pid in descendants(child)]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a program's ShardWorker actors, which Ray names after what they run."""
    return [pid for pid in descendants(process.pid) if b"ShardWorker" in _command_of(pid)]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def send(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to processes; those that are gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill_everything(process: subprocess.Popen[str]) -> None:
    """`kill -9` of the driver, of Ray's own processes and of the workers at once, as in a power cut."""
    send([process.pid, *descendants(process.pid)], signal.SIGKILL)
    process.communicate()


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, timeout_s: float = 300
) -> bool:
    """Waits until a condition holds; False when the program ended first."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline_s, "nothing happened for too long"
        time.sleep(0.01)
    return True


def commits_of(out: Path) -> list[Path]:
    """The paths of a local run's commits."""
    return list(out.glob("commits/*/*.json"))


def rows_of(run: Run) -> list[pd.DataFrame]:
    """A run's two tables as readers see them, in an order that does not depend on how they were written."""
    tables = (load_images(run), load_instances(run))
    keys = (["image_id"], ["image_id", "instance"])
    return [table.sort_values(key, ignore_index=True) for table, key in zip(tables, keys)]


def check_exact(
    out: Path | str, expected: Path | str, settings: StorageSettings | None = None, *, ignore: tuple[str, ...] = ()
) -> None:
    """Checks that a run has the rows of another, that `verify_run` finds no fault, and that nothing is half written.

    Args:
        settings: access to the buckets of both runs.
        ignore: columns that may differ.
    """
    run = open_run(str(out), settings)
    for table, expected_table in zip(rows_of(run), rows_of(open_run(str(expected), settings)), strict=True):
        columns = [column for column in table.columns if column not in ignore]
        pd.testing.assert_frame_equal(table[columns], expected_table[columns])
    faults = list(verify_run(run))
    assert faults == [], faults
    assert run.storage.remove_unfinished() == []
