"""Class map: assigns the network's labels 1..K to the categories of a data set, and checks that they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def thresholds_by_label(
    names: Sequence[str], threshold: float, by_name: Mapping[str, float]
) -> float | tuple[float, ...]:
    """The lowest score of all classes, or where any has one of its own, of each class in the order of its labels.

    Args:
        names: The classes, in the order of the labels.
        threshold: Of the classes that are not named.
        by_name: Thresholds by name of the class.

    Raises:
        ValueError: A name that no class has.
    """
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise ValueError(f"score_thresholds: the model has no class {unknown[0]!r}; allowed are {', '.join(names)}")
    return tuple(by_name.get(name, threshold) for name in names) if by_name else threshold
