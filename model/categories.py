"""Class map: assigns the network's labels 1..K to the categories of a data set, and checks that they fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """One class of a data set.

    A model's class map is a ``tuple[Category, ...]``. The network's label is the index + 1 (0 is background); `id` is
    the data set's own ``category_id``, and ids may have gaps.
    """

    id: int
    name: str


def check_categories(categories: Iterable[Category], num_classes: int) -> None:
    """Check that a class map fits a network of `num_classes` foreground classes.

    Raises:
        ValueError: The number of categories is not `num_classes`, or two categories share an id or a name.
    """
    categories = tuple(categories)
    if len(categories) != num_classes:
        raise ValueError(f"the class map has {len(categories)} categories, the spec has num_classes={num_classes}")
    for field in ("id", "name"):
        values = [getattr(category, field) for category in categories]
        duplicates = sorted({str(value) for value in values if values.count(value) > 1})
        if duplicates:
            raise ValueError(f"category {field} {', '.join(duplicates)} stands for more than one class")
