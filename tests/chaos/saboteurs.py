"""A predictor that kills its own worker at a given step of the commit protocol, for the real actors of a run.

A step is 'WHEN WHAT'. WHAT is the kind of file that is written (attempts, images, instances, commits). WHEN is one of

    before        nothing is written yet
    torn          half of the file is on the disk, under its temporary name
    unpublished   all of it is on the disk, still under its temporary name
    after         the file has its final name, and the writing call has not returned yet

On a bucket only 'before' and 'after' can be told apart. Step i kills the worker at shard i, once. A worker writes one
file at a time: otherwise a death at one shard, between another shard's commit and its 'after', would leave out that
step for good.
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
    """Kills its process at each of the steps, each step once among all workers of the run.

    Args:
        steps: the steps; the i-th one is for shard i.
        marks: a folder with an empty file for each step at which a worker was killed.
    """

    def __init__(self, *args: Any, steps: tuple[str, ...], marks: Path, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.steps, self.marks = steps, marks
        self.current = threading.local()  # .key: what this thread is writing
        self.one_at_a_time = threading.RLock()
        for storage in (LocalStorage, S3Storage):
            for name in ("write_bytes", "put_if_absent"):
                setattr(storage, name, self.around(getattr(storage, name)))
        os.fsync = self.instead_of_fsync(os.fsync)  # type: ignore[assignment]  # takes descriptors alone

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """A write of a storage with the steps 'before' and 'after' around it."""

        def write_and_die(storage: Any, key: str, data: bytes) -> Any:
            with self.one_at_a_time:
                self.current.key = key
                self.maybe_die("before")
                result = write(storage, key, data)
                self.maybe_die("after")
                self.current.key = ""
            return result

        return write_and_die

    def instead_of_fsync(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        """os.fsync with the steps 'torn' and 'unpublished'."""

        def fsync_and_die(descriptor: int) -> None:
            if self.is_due("torn"):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                self.die()
            fsync(descriptor)
            self.maybe_die("unpublished")

        return fsync_and_die

    def is_due(self, when: str) -> bool:
        """Whether this moment is the step of the shard that is written, reached for the first time; marks it then."""
        match = re.match(r"(\w+)/(?:\d{6}/)?(\d{9})\b", getattr(self.current, "key", ""))
        if not match or int(match[2]) >= len(self.steps) or self.steps[int(match[2])] != f"{when} {match[1]}":
            return False
        try:
            os.close(os.open(self.marks / f"{when} {match[1]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def maybe_die(self, when: str) -> None:
        if self.is_due(when):
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
