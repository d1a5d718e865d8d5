"""The same command several times at once, and workers that are stopped until after the run is sealed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.runs import (
    check_exact,
    commits_of,
    finish,
    kill_everything,
    send,
    start,
    wait_until,
    workers_of,
)
from tests.chaos.s3 import environment_for, make_bucket, settings_for


@pytest.mark.long
def test_a_writer_that_sleeps_through_seal_and_vacuum(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The command is given again while the workers of the first one are stopped in the middle of a shard."""
    out = tmp_path / "run"
    first = start(tiny_checkpoint, photos, out)
    try:
        assert wait_until(lambda: len(commits_of(out)) >= 2, first)
        stopped_workers = workers_of(first)
        send(stopped_workers, signal.SIGSTOP)
        assert stopped_workers and len(commits_of(out)) < 15
        finish(start(tiny_checkpoint, photos, out))
        check_exact(out, undisturbed)
        sealed = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        send(stopped_workers, signal.SIGCONT)
        finish(first)
    finally:
        kill_everything(first)
    check_exact(out, undisturbed)
    assert {path: path.read_bytes() for path in sealed} == sealed, "what was sealed stays as it was"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_several_submissions_at_once(
    count: int, tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    finish_all([start(tiny_checkpoint, photos, out) for _ in range(count)])
    check_exact(out, undisturbed)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("count", [2, 5])
def test_several_submissions_at_once_into_a_bucket(
    count: int, tiny_checkpoint: Path, photos: Path, undisturbed: Path, rgw: str
) -> None:
    out = f"s3://{make_bucket(rgw)}/run"
    finish_all([start(tiny_checkpoint, photos, out, **environment_for(rgw)) for _ in range(count)])
    check_exact(out, undisturbed, settings_for(rgw))


def finish_all(programs: list[subprocess.Popen[str]]) -> None:
    """Waits for all programs; each must end with exit code 0, whichever sealed the run."""
    try:
        for program in programs:
            finish(program)
    finally:
        for program in programs:
            kill_everything(program)
