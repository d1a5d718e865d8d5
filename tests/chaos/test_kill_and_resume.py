"""`kill -9` of the driver, a worker or everything at random moments, then the same command again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage.base import Storage
from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FaultProxy, random_faults
from tests.chaos.rgw import Rgw
from tests.chaos.runs import check_exact, commits_of, finish, kill_everything, send, start, wait_until, workers_of
from tests.chaos.s3 import environment_for, make_bucket, settings_for

NUM_SHARDS = 15


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


class Trials:
    """Runs that are killed at random moments; each is resumed until it is sealed, and then checked.

    Args:
        seed: of the random choices.
        begin: starts the program on the n-th output.
        num_commits: how many commits the n-th output has.
        is_sealed: whether the n-th output is sealed.
        check: compares the n-th output with an undisturbed run.
    """

    def __init__(
        self,
        seed: int,
        begin: Callable[[int], subprocess.Popen[str]],
        num_commits: Callable[[int], int],
        is_sealed: Callable[[int], bool],
        check: Callable[[int], None],
    ) -> None:
        self.chance = random.Random(seed)
        self.begin, self.num_commits, self.is_sealed, self.check = begin, num_commits, is_sealed, check
        self.kills = {"everything": 0, "driver": 0, "worker": 0}

    def run(self, num_kills: int) -> None:
        """Makes at least this many kills, and checks every output once it is sealed."""
        number = 0
        while sum(self.kills.values()) < num_kills:
            while not self.is_sealed(number):
                self.kill_one(number)
            finish(self.begin(number))  # the run may be sealed and not yet vacuumed
            self.check(number)
            print(f"run {number} is exact; kills so far {self.kills}", flush=True)
            number += 1

    def kill_one(self, number: int) -> None:
        """Starts the program, kills all or part of it at a random moment, and waits for the rest to end."""
        process = self.begin(number)
        before = self.num_commits(number)
        if self.chance.random() < 0.2:  # at any time, from the first import on
            kill_time = time.monotonic() + self.chance.random() * 15
            wait_until(lambda: time.monotonic() > kill_time, process)
        else:  # while shards are segmented, or shortly after
            commits = min(before + self.chance.randint(0, 5), NUM_SHARDS)
            wait_until(lambda: self.num_commits(number) >= commits, process)
            time.sleep(self.chance.random() * 0.3)
        if process.poll() is not None:
            finish(process)
            return
        kind = self.chance.choice(["everything", "everything", "driver", "worker"])
        if kind == "worker" and not (workers := workers_of(process)):
            kind = "everything"
        self.kills[kind] += 1
        if kind == "everything":
            kill_everything(process)
        elif kind == "driver":
            process.kill()
            process.communicate()
        else:
            send(workers[:1], signal.SIGKILL)
            finish(process)


@pytest.mark.slow
def test_a_hundred_kills(tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    def out(number: int) -> Path:
        return tmp_path / str(number)

    trials = Trials(
        seed=1,
        begin=lambda number: start(tiny_checkpoint, photos, out(number)),
        num_commits=lambda number: len(commits_of(out(number))),
        is_sealed=lambda number: (out(number) / "final.json").exists(),
        check=lambda number: check_exact(out(number), undisturbed),
    )
    trials.run(100)


@pytest.mark.slow
@pytest.mark.s3
def test_thirty_kills_on_a_real_store_that_fails(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, gateway: Rgw
) -> None:
    """Input and output lie in buckets of the gateway, and every fifth request meets a fault."""
    photos_uri, outputs_uri = f"s3://{make_bucket(gateway.endpoint)}", f"s3://{make_bucket(gateway.endpoint)}"
    plain = settings_for(gateway.endpoint)
    corpus = open_storage(photos_uri, plain)
    for path in photos.rglob("*"):
        if path.is_file():
            corpus.write_bytes(path.relative_to(photos).as_posix(), path.read_bytes())

    def storage(number: int) -> Storage:
        return open_storage(f"{outputs_uri}/{number}", plain)

    with FaultProxy(gateway.endpoint, random_faults(0.2, seed=2)) as proxy:
        trials = Trials(
            seed=3,
            begin=lambda number: start(
                tiny_checkpoint,
                photos_uri,
                f"{outputs_uri}/{number}",
                "storage.num_retries=30",
                **environment_for(proxy.url),
            ),
            num_commits=lambda number: sum(1 for _ in storage(number).iter_objects("commits/")),
            is_sealed=lambda number: storage(number).exists("final.json"),
            check=lambda number: check_exact(
                f"{outputs_uri}/{number}", undisturbed, plain, ignore=("uri", "etag", "run_id")
            ),
        )
        trials.run(30)
        print(dict(proxy.counts))
        assert min(proxy.counts[fault] for fault in ("503", "cut_after", "lost_answer", "truncate")) > 0
