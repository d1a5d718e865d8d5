"""What a schedule has done, kept in the bucket: any number of schedulers share it, and none of them is needed.

    STATE/<task>/since.json                        the first moment that counts, written once
    STATE/<task>/ticks/<time>/started-0001.json    somebody works on the tick, until when at the latest
    STATE/<task>/ticks/<time>/queued.json          the tick waits for an earlier one
    STATE/<task>/ticks/<time>/done.json            what became of it: THE record, put-if-absent
    STATE/<task>/cursor.json                       every tick up to here is done; spares a listing and may be lost

A tick without done.json is not done. Who starts one says so, so that others leave it to them; who finds only marks of
people whose time is up starts it again. Two may then do the same work; one of them records it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.manifest import to_json
from pipeline.storage.base import Storage

STAMP = "%Y%m%dT%H%M%SZ"


@dataclass
class TickState:
    """State of one tick.

    Attributes:
        started: records of the starts that were not released, oldest first.
        is_queued: whether the tick waits for an earlier one.
        done: the tick's final record; None while it is not done.
        last_number: number of the newest record in `started`; 0 without any. Earlier ones may have been released.
    """

    started: list[dict[str, Any]] = field(default_factory=list)
    is_queued: bool = False
    done: dict[str, Any] | None = None
    last_number: int = 0


class ScheduleState:
    """The state of every task below one URI."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def since(self, task: str, first: datetime) -> datetime:
        """From when on ticks count; `first` where the task is seen for the first time."""
        key = f"{task}/since.json"
        self.storage.put_if_absent(key, to_json({"since": first.astimezone(UTC).isoformat()}))
        return datetime.fromisoformat(json.loads(self.storage.read_bytes(key))["since"])

    def cursor(self, task: str) -> datetime | None:
        """Every tick up to here is done; None where nobody has said so yet."""
        try:
            return datetime.fromisoformat(json.loads(self.storage.read_bytes(f"{task}/cursor.json"))["done"])
        except FileNotFoundError:
            return None

    def move_cursor(self, task: str, tick: datetime) -> None:
        """Says that every tick up to this one is done."""
        self.storage.write_bytes(f"{task}/cursor.json", to_json({"done": tick.astimezone(UTC).isoformat()}))

    def ticks(self, task: str, after: datetime) -> dict[datetime, TickState]:
        """What is kept of the ticks later than `after`."""
        prefix, found = f"{task}/ticks/", dict[datetime, TickState]()
        for info in self.storage.iter_objects(prefix, after=f"{prefix}{after.astimezone(UTC):{STAMP}}/~"):
            stamp, _, name = info.key.removeprefix(prefix).partition("/")
            state = found.setdefault(datetime.strptime(stamp, STAMP).replace(tzinfo=UTC), TickState())
            if name == "queued.json":
                state.is_queued = True
            elif name == "done.json":
                state.done = json.loads(self.storage.read_bytes(info.key))
            elif name.startswith("started-"):
                state.started.append(json.loads(self.storage.read_bytes(info.key)))
                state.last_number = int(name.removeprefix("started-").removesuffix(".json"))
        return found

    def start(self, task: str, tick: datetime, number: int, record: Mapping[str, Any]) -> bool:
        """Puts the mark of the `number`-th start (from 1); False where somebody else was first."""
        return self.storage.put_if_absent(_start_key(task, tick, number), to_json(dict(record)))

    def release(self, task: str, tick: datetime, number: int) -> None:
        """Takes one's own mark away, for others to start the tick at once."""
        self.storage.delete(_start_key(task, tick, number))

    def queue(self, task: str, tick: datetime) -> None:
        """Notes that a tick waits; it is run however late that will be."""
        self.storage.put_if_absent(f"{_tick_key(task, tick)}/queued.json", to_json({}))

    def finish(self, task: str, tick: datetime, record: Mapping[str, Any]) -> bool:
        """Records what became of a tick; False where that is recorded already, which then stays."""
        return self.storage.put_if_absent(f"{_tick_key(task, tick)}/done.json", to_json(dict(record)))


def _tick_key(task: str, tick: datetime) -> str:
    return f"{task}/ticks/{tick.astimezone(UTC):{STAMP}}"


def _start_key(task: str, tick: datetime, number: int) -> str:
    return f"{_tick_key(task, tick)}/started-{number:04d}.json"
