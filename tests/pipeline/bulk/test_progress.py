"""Counts of many workers, some of which die: no image counts twice, and memory does not grow with the shards."""

from __future__ import annotations

import pytest

from pipeline.bulk import progress
from pipeline.bulk.encode import ImageResult
from pipeline.bulk.progress import Progress, ShardCounter, ShardReport, StageClock, Tally, report_of_commit
from pipeline.manifest import Commit, DataFile
from pipeline.plan import PlannedImage

OK = ImageResult(PlannedImage("a", "a"), "ok", instances={"score": [0.5, 0.4]})
BROKEN = ImageResult(PlannedImage("b", "b"), "corrupt")


def test_a_shard_begun_anew_counts_once_and_so_does_one_that_is_found_committed() -> None:
    tally = Tally()
    dies = ShardCounter("dies", tally.take, 7, StageClock())
    dies.add(OK)
    dies.flush()
    assert tally.progress(9, 0, 1.0).statuses == {"ok": 1}
    other = ShardCounter("other", tally.take, 7, StageClock())
    other.add(OK)
    other.add(BROKEN)
    other.flush(committed=True)
    state = tally.progress(9, 0, 1.0)
    assert state.statuses == {"ok": 1, "corrupt": 1} and state.num_instances == 2
    empty = DataFile("k", 2, 0, "")
    tally.take(report_of_commit("other", Commit("run", 7, "other", empty, empty, {"ok": 1, "corrupt": 1}, {})))
    timings_s = {"predict": 3.0, "wait_for_images": 1.0, "write": 9.0}
    tally.take(report_of_commit("other", Commit("run", 8, "other", empty, empty, {"ok": 2}, timings_s)))
    state = tally.progress(9, 0, 1.0)
    assert state.statuses == {"ok": 3, "corrupt": 1} and state.num_instances == 4
    assert state.busy_share == 0.75 and state.num_workers == 2 and tally.uncommitted == {}


def test_a_worker_reports_at_most_so_often_and_always_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reports: list[ShardReport] = []
    counter = ShardCounter("worker", reports.append, 3, StageClock())
    for now[0] in (100.1, 100.2, 100.1 + progress.REPORT_EVERY_S, 100.2 + progress.REPORT_EVERY_S):
        counter.add(OK)
    assert [report.statuses for report in reports] == [{"ok": 3}]
    counter.flush(committed=True)
    assert [(report.statuses, report.committed) for report in reports] == [({"ok": 3}, False), ({"ok": 4}, True)]


def test_a_worker_not_heard_of_for_long_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tally = Tally()
    tally.take(ShardReport("lost", 0, {}, 0, {}, committed=False))
    now[0] += progress.SILENT_AFTER_S
    tally.take(ShardReport("alive", 1, {}, 0, {}, committed=False))
    assert tally.progress(9, 0, 1.0).num_workers == 1


def test_speed_and_end_are_told_from_the_images_of_this_call() -> None:
    before = Progress(100, 10, {}, 0, 2.0)
    assert (before.num_done, before.images_per_s, before.eta_s) == (10, 0.0, None)
    half = Progress(100, 10, {"ok": 40, "corrupt": 5}, 99, 9.0)
    assert (half.num_done, half.num_failed, half.images_per_s, half.eta_s) == (55, 5, 5.0, 9.0)
    assert Progress(0, 0, {}, 0, 0.0).images_per_s == 0.0
