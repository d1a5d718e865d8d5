"""Predictors that kill their own worker at a given step of the commit order; they are loaded into the real actors.

A step is 'WHEN WHAT': WHAT is the kind of file that is written (attempts, images, instances, commits), WHEN one of

    before        nothing is written yet
    torn          half of the file is on the disk, under its temporary name
    unpublished   all of it is, still under its temporary name
    after         the file has its name, and the worker has not been told

On a bucket only 'before' and 'after' can be told apart. Step i strikes at shard i, once. A worker writes one file at a
time: else the death of one shard, between another's commit and its 'after', would leave that step out for good.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.bulk.predict import ImagePredictor
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3 import S3Storage

KINDS = ("attempts", "images", "instances", "commits")
STEPS = tuple(f"{when} {what}" for what in KINDS for when in ("before", "torn", "unpublished", "after"))
BUCKET_STEPS = tuple(step for step in STEPS if step.startswith(("before", "after")))


class DiesAtSteps(ImagePredictor):
    """Kills its process at each of the steps, once for all workers of the run.

    Args:
        steps: the steps, by number of the shard at which they strike.
        marks: a folder that remembers which have struck.
    """

    def __init__(self, *args: Any, steps: tuple[str, ...], marks: Path, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.steps, self.marks, self.now = steps, marks, threading.local()
        self.one_at_a_time = threading.RLock()
        for storage in (LocalStorage, S3Storage):
            for name in ("write_bytes", "put_if_absent"):
                setattr(storage, name, self.around(getattr(storage, name)))
        os.fsync = self.instead_of_sync(os.fsync)

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def write_and_die(storage: Any, key: str, data: bytes) -> Any:
            with self.one_at_a_time:
                self.now.key = key
                self.maybe_die("before")
                result = write(storage, key, data)
                self.maybe_die("after")
                self.now.key = ""
            return result

        return write_and_die

    def instead_of_sync(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def sync_and_die(descriptor: int) -> None:
            if self.strikes("torn"):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                self.die()
            sync(descriptor)
            self.maybe_die("unpublished")

        return sync_and_die

    def strikes(self, when: str) -> bool:
        """Whether this is a step at this shard, and the first time it is reached."""
        found = re.match(r"(\w+)/(?:\d{6}/)?(\d{9})\b", getattr(self.now, "key", ""))
        if not found or int(found[2]) >= len(self.steps) or self.steps[int(found[2])] != f"{when} {found[1]}":
            return False
        try:
            os.close(os.open(self.marks / f"{when} {found[1]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def maybe_die(self, when: str) -> None:
        if self.strikes(when):
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
