"""Whole runs that are disturbed at random moments, resumed until sealed, and compared with an undisturbed one."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipeline.storage.base import Storage
from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FaultProxy
from tests.chaos.runs import check_exact, commits_of, finish, start, wait_until
from tests.chaos.s3 import environment_for, make_bucket, settings_for

OF_THE_BUCKET = ("uri", "etag", "run_id")  # columns that differ from a run over the same photos on disk
NUM_SHARDS = 15
WHOLE_RUN_S = 15.0

Strike = Callable[[subprocess.Popen[str], random.Random], str]
"""Disturbs a running program and waits until it has ended; returns the kind of the fault, "" where it came too late."""


class Trials:
    """Runs that are disturbed at random moments; each is resumed until it is sealed, and then checked.

    Args:
        seed: of the random choices.
        strike: disturbs a program.
        begin: starts the program on the n-th output.
        num_commits: how many commits the n-th output has.
        is_sealed: whether the n-th output is sealed.
        check: compares the n-th output with an undisturbed run.
        any_time_share: of the faults, those that come at any time from the first import on; the others come while
            shards are segmented, or shortly after.
    """

    def __init__(
        self,
        seed: int,
        strike: Strike,
        begin: Callable[[int], subprocess.Popen[str]],
        num_commits: Callable[[int], int],
        is_sealed: Callable[[int], bool],
        check: Callable[[int], None],
        any_time_share: float = 0.2,
    ) -> None:
        self.chance = random.Random(seed)
        self.strike, self.begin, self.check = strike, begin, check
        self.num_commits, self.is_sealed = num_commits, is_sealed
        self.any_time_share = any_time_share
        self.struck = Counter[str]()

    def run(self, num_strikes: int) -> None:
        """Strikes at least this many times, and checks every output once it is sealed."""
        number, began = 0, time.monotonic()
        while self.struck.total() < num_strikes:
            while not self.is_sealed(number):
                self.strike_one(number)
            finish(self.begin(number))  # the run may be sealed and not yet vacuumed
            self.check(number)
            print(f"run {number} is exact; {dict(self.struck)}, {time.monotonic() - began:.0f} s so far", flush=True)
            number += 1

    def strike_one(self, number: int) -> None:
        """Starts the program and disturbs it at a random moment, unless it has ended before."""
        process = self.begin(number)
        before = self.num_commits(number)
        if self.chance.random() < self.any_time_share:
            strike_time = time.monotonic() + self.chance.random() * WHOLE_RUN_S
            wait_until(lambda: time.monotonic() > strike_time, process)
        else:
            commits = min(before + self.chance.randint(0, 5), NUM_SHARDS)
            wait_until(lambda: self.num_commits(number) >= commits, process)
            time.sleep(self.chance.random() * 0.3)
        if process.poll() is not None:
            finish(process)
        elif kind := self.strike(process, self.chance):
            self.struck[kind] += 1


def local_trials(
    seed: int, strike: Strike, checkpoint: Path, photos: Path, undisturbed: Path, folder: Path, **options: float
) -> Trials:
    """Trials whose outputs are folders of a local one."""

    def out(number: int) -> Path:
        return folder / str(number)

    return Trials(
        seed,
        strike,
        begin=lambda number: start(checkpoint, photos, out(number)),
        num_commits=lambda number: len(commits_of(out(number))),
        is_sealed=lambda number: (out(number) / "final.json").exists(),
        check=lambda number: check_exact(out(number), undisturbed),
        **options,
    )


def copy_photos(photos: Path, endpoint: str) -> str:
    """Copies the photos into a new bucket; returns its URI."""
    uri = f"s3://{make_bucket(endpoint)}"
    bucket = open_storage(uri, settings_for(endpoint))
    for path in photos.rglob("*"):
        if path.is_file():
            bucket.write_bytes(path.relative_to(photos).as_posix(), path.read_bytes())
    return uri


def bucket_trials(
    seed: int,
    strike: Strike,
    checkpoint: Path,
    photos: Path,
    undisturbed: Path,
    endpoint: str,
    proxy: FaultProxy,
    *words: str,
) -> Trials:
    """Trials whose photos and outputs are in buckets of the store behind a proxy."""
    photos_uri, outputs_uri, plain = (
        copy_photos(photos, endpoint),
        f"s3://{make_bucket(endpoint)}",
        settings_for(endpoint),
    )

    def output(number: int) -> Storage:
        return open_storage(f"{outputs_uri}/{number}", plain)

    return Trials(
        seed,
        strike,
        begin=lambda number: start(checkpoint, photos_uri, output(number).uri, *words, **environment_for(proxy.url)),
        num_commits=lambda number: sum(1 for _ in output(number).iter_objects("commits/")),
        is_sealed=lambda number: output(number).exists("final.json"),
        check=lambda number: check_exact(output(number).uri, undisturbed, plain, ignore=OF_THE_BUCKET),
    )
