"""Storage settings and secrets: what is refused, and what never shows."""

from __future__ import annotations

import pytest

from pipeline.storage.base import Secret, StorageError
from tests.chaos.s3 import settings_for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret_key": None}, "only one of"),
        ({"anonymous": True}, "anonymous"),
        ({"num_retries": -1}, "num_retries is -1"),
        ({"max_parallel": 0}, "max_parallel is 0"),
        ({"read_timeout_s": 0.0}, "read_timeout_s is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        settings_for("http://127.0.0.1:1", **change)


def test_a_secret_is_equal_to_itself_only() -> None:
    assert Secret("a") == Secret("a") and Secret("a") != Secret("b") and Secret("a") != "a"
    assert f"{Secret('a')!s} {Secret('a')!r}" == "*** ***"
