"""What was tried on a shard: notes that find the image which keeps killing its worker.

Correctness never rests on them. A shard at which one driver has seen MAX_DEATHS workers die is gone through one image
at a time, each image noted before it is touched; the image noted last by a worker that died gets an error row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.manifest import attempt_key, to_json
from pipeline.storage.base import Storage

MAX_DEATHS = 3


@dataclass(frozen=True)
class Attempt:
    """One try at a shard.

    Attributes:
        shard, name: which, and under what name its files are written.
        driver: the call of `segment_corpus` it belongs to; other calls' deaths do not count.
        careful: whether it goes one image at a time.
        deadly: places in the shard (0-based) of images on which a careful attempt died.
    """

    storage: Storage
    shard: int
    name: str
    driver: str
    careful: bool
    deadly: frozenset[int]

    def note(self, place: int | None = None) -> None:
        """Writes that this attempt was begun, or, when careful, that it is about to touch the image at `place`."""
        note = {"driver": self.driver, "careful": self.careful, "image": place}
        self.storage.write_bytes(attempt_key(self.shard, self.name), to_json(note))


def begin_attempt(storage: Storage, shard: int, name: str, driver: str) -> Attempt:
    """Notes a new attempt and looks at what became of this driver's earlier ones.

    An earlier attempt of the same driver at a shard without a commit has died: Ray gives a shard to one worker at a
    time and only gives it out again when that worker is gone.
    """
    died = []
    for info in storage.iter_objects(f"{attempt_key(shard, '').rsplit('/', 1)[0]}/"):
        try:
            note = json.loads(storage.read_bytes(info.key))
        except ValueError:  # torn by whatever ended it
            continue
        if note.get("driver") == driver:
            died.append(note)
    deadly = frozenset(note["image"] for note in died if note["careful"] and note["image"] is not None)
    attempt = Attempt(storage, shard, name, driver, careful=len(died) >= MAX_DEATHS, deadly=deadly)
    attempt.note()
    return attempt
