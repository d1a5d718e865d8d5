"""Attempt notes of a shard: they find the image that keeps killing its worker.

Correctness does not depend on them. A shard on which MAX_DEATHS workers of one driver have died is segmented one image
at a time, and each image is noted before it is touched. The image that a dead worker noted last gets an error row. One
death is enough where the worker has ended itself and noted why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from pipeline.manifest import attempt_key, to_json
from pipeline.storage.base import Storage

MAX_DEATHS = 3  # of one driver on one shard, before its next attempt is careful
DIED = "the worker that touched it died, more than once"


@dataclass(frozen=True)
class AttemptNote:
    """What an attempt writes about itself.

    Attributes:
        driver: name of the `segment_corpus` call it belongs to; the deaths of other calls do not count.
        careful: whether images are segmented one at a time.
        image: index in the shard (from 0) of the image that it is about to touch; None for no particular one.
        reason: why the worker ends itself, in words; None while it does not.
    """

    driver: str
    careful: bool
    image: int | None = None
    reason: str | None = None

    def to_json(self) -> bytes:
        """The note as JSON."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> AttemptNote | None:
        """The note that `to_json` wrote; None when the bytes are none, such as of a note half written."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Attempt:
    """One try at a shard.

    Attributes:
        storage: the run's output, which holds the notes.
        shard: the shard's number.
        name: a part of the names of all files that this attempt writes.
        begun: its first note.
        deadly: why images get an error, in words, by their index in the shard (from 0): a careful attempt died on them.
    """

    storage: Storage
    shard: int
    name: str
    begun: AttemptNote
    deadly: Mapping[int, str]

    @property
    def careful(self) -> bool:
        """Whether images are segmented one at a time."""
        return self.begun.careful

    def note(self, index: int | None = None, reason: str | None = None) -> None:
        """Writes that the attempt has begun, is about to touch the image at this index of the shard, or ends itself."""
        note = replace(self.begun, image=index, reason=reason)
        self.storage.write_bytes(attempt_key(self.shard, self.name), note.to_json())


def begin_attempt(storage: Storage, shard: int, name: str, driver: str) -> Attempt:
    """Notes a new attempt at a shard that has no commit, and reads the notes of this driver's earlier attempts.

    Each earlier attempt of the same driver counts as a death: Ray gives a shard to one worker at a time, and to another
    only when that worker is gone. So does each with a reason, whichever driver's. A note that cannot be read is passed
    over.
    """
    infos = storage.iter_objects(f"{attempt_key(shard, '').rsplit('/', 1)[0]}/")
    notes = [AttemptNote.from_json(storage.read_bytes(info.key)) for info in infos]
    dead = [note for note in notes if note is not None and (note.driver == driver or note.reason)]
    deadly = {note.image: note.reason or DIED for note in dead if note.careful and note.image is not None}
    careful = len(dead) >= MAX_DEATHS or any(note.reason for note in dead)
    attempt = Attempt(storage, shard, name, AttemptNote(driver, careful), deadly)
    attempt.note()
    return attempt
