"""Class names as text: lists of them in files, and which names the formats that know classes by name can hold."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from model.categories import Category
from pipeline.dataset.types import IGNORE_NAME, AnnotationError
from pipeline.storage.files import Location

BACKGROUND_NAME = "_background_"  # LabelMe's name for pixels of no object
_NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, surrogates, line and paragraph separators


def is_one_line(text: str) -> bool:
    """Whether a text can stand alone in a line of a list and in XML: not empty, no blanks at its ends, no controls."""
    is_plain = not any(unicodedata.category(char) in _NOT_IN_A_LINE or char in "\ufffe\uffff" for char in text)
    return bool(text) and text == text.strip() and is_plain


def read_lines(path: Location) -> list[str]:
    """The lines of a text file, without blanks at their ends. Blank lines at the end of the file are left out.

    Raises:
        ValueError: see `Location.read_text`.
    """
    return [line.strip() for line in path.read_text().rstrip().splitlines()]


def check_distinct(names: Iterable[str | int], where: str) -> None:
    """Raises AnnotationError when a name or id of a class stands in a list twice."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f"{where}: the class {repeated[0]!r} stands there twice")


def check_writable(categories: Iterable[Category], format: str) -> None:
    """Raises AnnotationError for a class that a format of bare names cannot hold: it would be read back as another."""
    for category in categories:
        if not is_one_line(category.name) or category.name in (IGNORE_NAME, BACKGROUND_NAME):
            raise AnnotationError(
                f"category {category.id} is named {category.name!r}, which {format} cannot hold; allowed is one line "
                f"of text without blanks at its ends, other than {IGNORE_NAME} and {BACKGROUND_NAME}"
            )
