"""State of a schedule in a folder or bucket: starts and final records of ticks, shared by any number of schedulers.

    STATE/<task>/since.json                        time from which ticks count; put if absent
    STATE/<task>/ticks/<time>/started-0001.json    who runs the tick, until when at the latest; put if absent
    STATE/<task>/ticks/<time>/queued.json          the tick waits for an earlier one; put if absent
    STATE/<task>/ticks/<time>/done.json            final record of the tick: outcome, reason, steps; put if absent
    STATE/<task>/cursor.json                       time up to which every tick is done; saves listing, may be lost
    STATE/<task>/last_run.json                     URI of the newest finished run of a segmentation task

A tick is done when it has a done.json. A scheduler puts a start before it runs a tick, and the others then leave the
tick alone until the time that the start names. After that time another scheduler may start the tick again. Two may then
do the same work; only the first to finish records it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

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

    started: list[dict[str, str]] = field(default_factory=list)
    is_queued: bool = False
    done: dict[str, str | list[str]] | None = None
    last_number: int = 0


class ScheduleState:
    """The state of every task below one URI."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def since(self, task: str, first: datetime) -> datetime:
        """The time from which the task's ticks count; it is set to `first` where it is not set yet."""
        key = f"{task}/since.json"
        self.storage.put_if_absent(key, to_json({"since": first.astimezone(UTC).isoformat()}))
        return datetime.fromisoformat(json.loads(self.storage.read_bytes(key))["since"])

    def cursor(self, task: str) -> datetime | None:
        """The time up to which every tick is done; None where it is not set yet."""
        try:
            return datetime.fromisoformat(json.loads(self.storage.read_bytes(f"{task}/cursor.json"))["done"])
        except FileNotFoundError:
            return None

    def move_cursor(self, task: str, tick: datetime) -> None:
        """Sets the time up to which every tick is done, `tick` included."""
        self.storage.write_bytes(f"{task}/cursor.json", to_json({"done": tick.astimezone(UTC).isoformat()}))

    def ticks(self, task: str, after: datetime) -> dict[datetime, TickState]:
        """The state of each tick later than `after` that has any, oldest first."""
        prefix, states = f"{task}/ticks/", dict[datetime, TickState]()
        for info in self.storage.iter_objects(prefix, after=f"{prefix}{after.astimezone(UTC):{STAMP}}/~"):
            stamp, _, name = info.key.removeprefix(prefix).partition("/")
            state = states.setdefault(datetime.strptime(stamp, STAMP).replace(tzinfo=UTC), TickState())
            if name == "queued.json":
                state.is_queued = True
            elif name == "done.json":
                state.done = json.loads(self.storage.read_bytes(info.key))
            elif name.startswith("started-"):
                state.started.append(json.loads(self.storage.read_bytes(info.key)))
                state.last_number = int(name.removeprefix("started-").removesuffix(".json"))
        return states

    def start(self, task: str, tick: datetime, number: int, record: Mapping[str, object]) -> bool:
        """Puts the record of start `number` (from 1); returns False where another scheduler has put it before."""
        return self.storage.put_if_absent(_start_key(task, tick, number), to_json(dict(record)))

    def release(self, task: str, tick: datetime, number: int) -> None:
        """Deletes the record of a start, so that other schedulers may start the tick at once."""
        self.storage.delete(_start_key(task, tick, number))

    def queue(self, task: str, tick: datetime) -> None:
        """Marks a tick as waiting for an earlier one; it is then run even if it is late."""
        self.storage.put_if_absent(f"{_tick_key(task, tick)}/queued.json", to_json({}))

    def finish(self, task: str, tick: datetime, record: Mapping[str, object]) -> bool:
        """Puts the final record of a tick; returns False, and keeps the earlier record, where there is one."""
        return self.storage.put_if_absent(f"{_tick_key(task, tick)}/done.json", to_json(dict(record)))


def _tick_key(task: str, tick: datetime) -> str:
    return f"{task}/ticks/{tick.astimezone(UTC):{STAMP}}"


def _start_key(task: str, tick: datetime, number: int) -> str:
    return f"{_tick_key(task, tick)}/started-{number:04d}.json"
