"""Attempt notes of a shard: they find the image that keeps killing its worker.

Correctness does not depend on them. A shard on which MAX_DEATHS workers of one driver have died is segmented one image
at a time, and each image is noted before it is touched. The image that a dead worker noted last gets an error row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.manifest import attempt_key, to_json
from pipeline.storage.base import Storage

MAX_DEATHS = 3  # of one driver on one shard, before its next attempt is careful


@dataclass(frozen=True)
class Attempt:
    """One try at a shard.

    Attributes:
        storage: the run's output, which holds the notes.
        shard: the shard's number.
        name: a part of the names of all files that this attempt writes.
        driver: name of the `segment_corpus` call it belongs to; the deaths of other calls do not count.
        careful: whether images are segmented one at a time.
        deadly: indices in the shard (from 0) of images on which a careful attempt died.
    """

    storage: Storage
    shard: int
    name: str
    driver: str
    careful: bool
    deadly: frozenset[int]

    def note(self, index: int | None = None) -> None:
        """Writes that the attempt has begun, or that it is about to touch the image at this index of the shard."""
        note = {"driver": self.driver, "careful": self.careful, "image": index}
        self.storage.write_bytes(attempt_key(self.shard, self.name), to_json(note))


def begin_attempt(storage: Storage, shard: int, name: str, driver: str) -> Attempt:
    """Notes a new attempt at a shard that has no commit, and reads the notes of this driver's earlier attempts.

    Each earlier attempt of the same driver counts as a death: Ray gives a shard to one worker at a time, and to another
    only when that worker is gone. A note that cannot be read is passed over.
    """
    dead_attempts = []
    for info in storage.iter_objects(f"{attempt_key(shard, '').rsplit('/', 1)[0]}/"):
        try:
            note = json.loads(storage.read_bytes(info.key))
        except ValueError:  # half written
            continue
        if note.get("driver") == driver:
            dead_attempts.append(note)
    deadly = frozenset(note["image"] for note in dead_attempts if note["careful"] and note["image"] is not None)
    attempt = Attempt(storage, shard, name, driver, careful=len(dead_attempts) >= MAX_DEATHS, deadly=deadly)
    attempt.note()
    return attempt
