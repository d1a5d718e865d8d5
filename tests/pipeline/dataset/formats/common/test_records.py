"""Entries of annotation files as records: each fault names the entry, key, value and what is allowed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.dataset.faults import FaultList
from pipeline.dataset.formats.common.records import Coordinate, Length, Name, to_record
from pipeline.dataset.types import AnnotationError


class Shape(msgspec.Struct):
    label: Name | int
    points: list[tuple[Coordinate, Coordinate]]
    height: Length = 1
    difficult: bool | None = None


GOOD = {"label": "dog", "points": [[1, 2.5]], "height": 3, "unknown key": [None]}


def test_a_good_entry_is_a_record() -> None:
    faults = FaultList()
    assert to_record(GOOD, Shape, "shape 0", faults) == Shape("dog", [(1.0, 2.5)], 3)
    assert to_record({**GOOD, "label": 7}, Shape, "shape 0", faults) == Shape(7, [(1.0, 2.5)], 3)
    assert faults.count == 0


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (None, "shape 4 is None; allowed is an object"),
        ({"label": "dog"}, "shape 4 has no points"),
        ({**GOOD, "points": None}, "shape 4 has points None; allowed is a list"),
        ({**GOOD, "points": [[1, 2], [3]]}, r"shape 4 has points[1] [3]; allowed is a list of length 2"),
        ({**GOOD, "points": [[1, "2"]]}, "shape 4 has points[0][1] '2'; allowed is a number from"),
        ({**GOOD, "points": [[1, None]]}, "shape 4 has points[0][1] None; allowed is a number from"),
        ({**GOOD, "points": [[True, 2]]}, "shape 4 has points[0][0] True; allowed is a number from"),
        ({**GOOD, "points": [[float("nan"), 2]]}, "shape 4 has points[0][0] nan; allowed is a number from"),
        ({**GOOD, "points": [[1, float("-inf")]]}, "shape 4 has points[0][1] -inf; allowed is a number from"),
        ({**GOOD, "points": [[1, 10**400]]}, "; allowed is a number from"),
        ({**GOOD, "label": ""}, "shape 4 has label ''; allowed is a text that is not empty"),
        ({**GOOD, "label": "a\0"}, "; allowed is a text that is not empty"),
        ({**GOOD, "label": True}, "shape 4 has label True; allowed is a whole number or a text"),
        ({**GOOD, "label": 1.5}, "shape 4 has label 1.5; allowed is a whole number or a text"),
        ({**GOOD, "height": 0}, "shape 4 has height 0; allowed is a whole number from 1"),
        ({**GOOD, "height": "3"}, "shape 4 has height '3'; allowed is a whole number"),
        ({**GOOD, "difficult": 1}, "shape 4 has difficult 1; allowed is true or false or null"),
    ],
)
def test_a_wrong_entry_is_a_fault(entry: Any, sentence: str) -> None:
    faults = FaultList()
    assert to_record(entry, Shape, "shape 4", faults) is None
    with pytest.raises(AnnotationError) as caught:
        faults.refuse_if_any("a.json")
    assert str(caught.value).startswith("a.json: shape 4 ") and sentence in str(caught.value)
