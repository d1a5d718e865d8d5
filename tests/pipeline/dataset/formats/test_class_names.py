"""Class names in lists, and those that a list cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.categories import Category
from pipeline.dataset.formats.class_names import check_distinct, check_writable, is_one_line, read_lines
from pipeline.dataset.types import AnnotationError
from pipeline.storage.files import Location


@pytest.mark.parametrize("content", ["\ufeffdog\r\nbig cat \r\n\r\n", "dog\n big cat", "dog\nbig cat\n\n\n"])
def test_lists_of_every_editor_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.txt").write_text(content, encoding="utf-8", newline="")
    assert read_lines(Location(str(tmp_path / "labels.txt"))) == ["dog", "big cat"]


def test_a_list_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("Kätzchen".encode("latin1"))
    with pytest.raises(ValueError, match=r"labels\.txt is no text in UTF-8: .* line 1, column 2"):
        read_lines(Location(str(tmp_path / "labels.txt")))


@pytest.mark.parametrize("name", ["x", "a,b", "a: b", "'q'\"", "Ünï", "true", "null", "1", "日本", "two words", "🦊"])
def test_names_of_one_line_can_be_written(name: str) -> None:
    assert is_one_line(name)
    check_writable([Category(1, name)], "VOC")


@pytest.mark.parametrize(
    "name",
    ["", " ", "x ", " x", "line\nbreak", "a\rb", "a\x85b", "a\u2028b", "a\x01b", "a\x7fb", "\ufeff\ufffe", "\ud800"],
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_one_line(name)
    with pytest.raises(AnnotationError, match=r"category 7 is named .* which VOC cannot hold; allowed is one line"):
        check_writable([Category(1, "ok"), Category(7, name)], "VOC")


@pytest.mark.parametrize("name", ["__ignore__", "_background_"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(AnnotationError, match=f"named '{name}', which LabelMe cannot hold"):
        check_writable([Category(1, name)], "LabelMe")


def test_a_name_twice_is_refused() -> None:
    check_distinct(["a", "A", "b"], "list")
    with pytest.raises(AnnotationError, match=r"list: the class 'a' stands there twice"):
        check_distinct(["a", "b", "a"], "list")
