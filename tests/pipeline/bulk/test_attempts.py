"""Notes of attempts: which deaths make the next attempt careful, and which image is then to blame."""

from __future__ import annotations

from pathlib import Path

from pipeline.bulk.attempts import MAX_DEATHS, begin_attempt
from pipeline.manifest import attempt_key
from pipeline.storage.local import LocalStorage


def test_deaths_of_one_driver_make_the_next_attempt_careful(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(MAX_DEATHS):
        assert not begin_attempt(storage, 7, f"a{number}", "driver").careful
    assert not begin_attempt(storage, 7, "b", "another driver").careful
    careful = begin_attempt(storage, 7, "c", "driver")
    assert careful.careful and careful.deadly == frozenset()
    careful.note(4)
    assert begin_attempt(storage, 7, "d", "driver").deadly == {4}
    assert not begin_attempt(storage, 8, "e", "driver").careful, "another shard"


def test_a_half_written_note_is_passed_over(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(MAX_DEATHS):
        begin_attempt(storage, 7, f"a{number}", "driver")
    storage.write_bytes(attempt_key(7, "a0"), b'{"driver": "dri')
    assert not begin_attempt(storage, 7, "b", "driver").careful, "the torn note counts as no death"
    assert begin_attempt(storage, 7, "c", "driver").careful
