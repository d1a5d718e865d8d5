"""Faults are counted, and the first ten named."""

from __future__ import annotations

import pytest

from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.types import AnnotationError


def test_faults_are_named_up_to_ten_and_counted() -> None:
    faults = FaultList()
    faults.refuse_if_any("x.json")
    for number in range(1234):
        faults.add(f"image {number} is odd")
    with pytest.raises(AnnotationError, match=r"^x\.json: image 0 is odd; .*image 9 is odd; and 1,224 more$") as caught:
        faults.refuse_if_any("x.json")
    assert caught.value.count == 1234 and caught.value.faults[-1] == "image 9 is odd"


def test_long_values_are_cut() -> None:
    assert shown([1, "a"]) == "[1, 'a']" and len(shown("x" * 500)) == 60
