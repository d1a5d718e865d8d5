"""The state of a schedule on a disk and in a bucket: what is put once stays, and later ticks are found."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from jobs.schedule.state import ScheduleState, TickState
from pipeline.storage.stores import open_storage
from tests.jobs.schedule.simulation import at

TICK = at("2026-03-01T10:00:00")


@pytest.fixture(params=["disk", "bucket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> ScheduleState:
    uri = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return ScheduleState(open_storage(f"{uri}/state"))


def test_ticks_count_from_when_the_task_was_first_seen(state: ScheduleState) -> None:
    assert state.since("eval", TICK) == TICK
    assert state.since("eval", TICK + timedelta(days=1)) == TICK
    assert state.since("other", TICK + timedelta(days=1)) == TICK + timedelta(days=1)


def test_the_cursor_is_the_last_one_set(state: ScheduleState) -> None:
    assert state.cursor("eval") is None
    for tick in (TICK, TICK + timedelta(hours=1)):
        state.move_cursor("eval", tick)
        assert state.cursor("eval") == tick


def test_each_start_belongs_to_one_scheduler_until_it_is_released(state: ScheduleState) -> None:
    assert state.start("eval", TICK, 1, {"scheduler": "a"})
    assert not state.start("eval", TICK, 1, {"scheduler": "b"})
    assert state.start("eval", TICK, 2, {"scheduler": "b"})
    before = TICK - timedelta(seconds=1)
    assert state.ticks("eval", before) == {TICK: TickState([{"scheduler": "a"}, {"scheduler": "b"}], last_number=2)}
    state.release("eval", TICK, 1)
    assert state.ticks("eval", before) == {TICK: TickState([{"scheduler": "b"}], last_number=2)}
    assert state.start("eval", TICK, 1, {"scheduler": "c"})


def test_the_first_record_of_a_tick_stays(state: ScheduleState) -> None:
    state.queue("eval", TICK)
    state.queue("eval", TICK)
    assert state.finish("eval", TICK, {"outcome": "done"})
    assert not state.finish("eval", TICK, {"outcome": "failed"})
    assert state.ticks("eval", at("2026-01-01T00:00:00")) == {TICK: TickState([], True, {"outcome": "done"})}


def test_only_ticks_of_the_task_later_than_the_given_one_are_listed(state: ScheduleState) -> None:
    ticks = [TICK + timedelta(hours=hour) for hour in range(4)]
    for tick in ticks:
        state.start("eval", tick, 1, {})
        state.finish("eval", tick, {})
        state.queue("eval-2", tick)
    assert list(state.ticks("eval", ticks[1])) == ticks[2:]
    assert list(state.ticks("eval", ticks[1] - timedelta(seconds=1))) == ticks[1:]
    assert state.ticks("eval", ticks[3]) == {}
