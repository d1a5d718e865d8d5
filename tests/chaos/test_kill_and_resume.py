"""`kill -9` of the driver, a worker or everything at random moments, then the same command again."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.fault_proxy import FaultProxy, random_faults
from tests.chaos.runs import check_exact, commits_of, finish, kill_everything, send, start, wait_until, workers_of
from tests.chaos.trials import bucket_trials, local_trials


def test_a_killed_run_resumes_to_the_same_rows(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    victim = start(tiny_checkpoint, photos, out)
    assert wait_until(lambda: len(commits_of(out)) >= 3, victim)
    kill_everything(victim)
    survived = {path: path.read_bytes() for path in commits_of(out)}
    assert survived and not (out / "final.json").exists(), "the kill came when no shard was left to segment"
    finish(start(tiny_checkpoint, photos, out))
    assert {path: path.read_bytes() for path in survived} == survived, "what was committed stays as it was"
    check_exact(out, undisturbed)


def kill(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kills a program, its driver alone or one of its workers; returns which."""
    kind = chance.choice(["everything", "everything", "driver", "worker"])
    if kind == "worker" and (workers := workers_of(process)):
        send(workers[:1], signal.SIGKILL)
        finish(process)
        return kind
    if kind == "driver":
        process.kill()
        process.communicate()
        return kind
    kill_everything(process)
    return "everything"


@pytest.mark.slow
def test_a_hundred_kills(tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    local_trials(1, kill, tiny_checkpoint, photos, undisturbed, tmp_path).run(100)


@pytest.mark.slow
@pytest.mark.s3
def test_thirty_kills_on_a_real_store_that_fails(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, rgw: str
) -> None:
    """Input and output lie in buckets of the gateway, and every fifth request meets a fault."""
    with FaultProxy(rgw, random_faults(0.2, seed=2)) as proxy:
        places = (tiny_checkpoint, photos, undisturbed, rgw, proxy)
        bucket_trials(3, kill, *places, "storage.num_retries=30").run(30)
        print(dict(proxy.counts))
        assert min(proxy.counts[fault] for fault in ("503", "cut_after", "lost_answer", "truncate")) > 0
