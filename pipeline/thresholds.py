"""Score thresholds of classes, as `maskfleet evaluate` writes them to a file and `segment` and `predict` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location

KEY = "score_thresholds"


def read_thresholds(given: Mapping[str, float] | str, storage: StorageSettings | None = None) -> dict[str, float]:
    """The thresholds by name of the class: those given, or those that a JSON file holds under `KEY`.

    Args:
        given: Thresholds, 0..1, or the path or URI of a file of them.
        storage: How a bucket is reached.

    Raises:
        ValueError: There is no such file, or it is of another form.
    """
    if isinstance(given, Mapping):
        return dict(given)
    try:
        document = Location(given, storage).read_json()
    except FileNotFoundError:
        raise ValueError(
            f"score_thresholds: {given!r} does not exist; allowed are thresholds by class, or a file of "
            "them that evaluate wrote"
        ) from None
    thresholds = document.get(KEY) if isinstance(document, Mapping) else None
    if not isinstance(thresholds, Mapping) or not all(_is_threshold(value) for value in thresholds.values()):
        raise ValueError(f"score_thresholds: {given!r} has no {KEY!r} of numbers from 0 to 1 by name of the class")
    return {str(name): float(value) for name, value in thresholds.items()}


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


def _is_threshold(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
