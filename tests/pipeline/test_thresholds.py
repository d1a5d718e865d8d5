"""Thresholds of classes, given or in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.thresholds import KEY, read_thresholds, thresholds_by_label


def test_thresholds_are_taken_as_given_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps({KEY: {"circle": 1, "ring": 0.25}, "for": "f1"}))
    assert read_thresholds(str(file)) == {"circle": 1.0, "ring": 0.25}
    assert read_thresholds({"circle": 0.5}) == {"circle": 0.5} and read_thresholds({}) == {}


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"score_thresholds": {"a": 1.5}}', '{"score_thresholds": {"a": true}}', "x"]
)
def test_a_file_of_another_form_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"thresholds\.json"):
        read_thresholds(str(file))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"score_thresholds: .*gone\.json' does not exist; allowed are"):
        read_thresholds(str(tmp_path / "gone.json"))


def test_thresholds_of_classes_stand_in_the_order_of_the_labels() -> None:
    assert thresholds_by_label(["cat", "dog"], 0.3, {"dog": 0.7}) == (0.3, 0.7)
    assert thresholds_by_label(["cat", "dog"], 0.3, {}) == 0.3
    with pytest.raises(ValueError, match=r"score_thresholds: the model has no class 'dgo'; allowed are cat, dog"):
        thresholds_by_label(["cat", "dog"], 0.3, {"dgo": 0.7})
