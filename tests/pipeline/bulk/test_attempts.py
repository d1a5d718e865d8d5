"""Notes of attempts: which deaths make the next attempt careful, and which image is then to blame."""

from __future__ import annotations

from pathlib import Path

from pipeline.bulk.attempts import DIED, MAX_DEATHS, begin_attempt
from pipeline.manifest import attempt_key
from pipeline.storage.local import LocalStorage


def test_deaths_of_one_driver_make_the_next_attempt_careful(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(MAX_DEATHS):
        assert not begin_attempt(storage, 7, f"a{number}", "driver").careful
    assert not begin_attempt(storage, 7, "b", "another driver").careful
    careful = begin_attempt(storage, 7, "c", "driver")
    assert careful.careful and careful.deadly == {}
    careful.note(4)
    assert begin_attempt(storage, 7, "d", "driver").deadly == {4: DIED}
    assert not begin_attempt(storage, 8, "e", "driver").careful, "another shard"


def test_one_worker_that_says_why_it_ends_makes_the_next_attempt_careful_whoever_starts_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    begin_attempt(storage, 7, "a", "driver").note(None, "it took longer than 5 s")
    for driver in ("driver", "another driver"):
        careful = begin_attempt(storage, 7, driver, driver)
        assert careful.careful and careful.deadly == {}, "of a batch, nobody knows which image it was"
    careful.note(2, "it took longer than 5 s")
    assert begin_attempt(storage, 7, "d", "third").deadly == {2: "it took longer than 5 s"}


def test_a_half_written_note_is_passed_over(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(MAX_DEATHS):
        begin_attempt(storage, 7, f"a{number}", "driver")
    storage.write_bytes(attempt_key(7, "a0"), b'{"driver": "dri')
    assert not begin_attempt(storage, 7, "b", "driver").careful, "the torn note counts as no death"
    assert begin_attempt(storage, 7, "c", "driver").careful
