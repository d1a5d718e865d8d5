"""JSON values of every type, put in the place of each value of an annotation file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

_DELETED = object()
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 7, 1e308, 10**30, float("nan"), float("-inf"), "", " ", "x", "a\0b", "\ud800", "../z.jpg",
    "s3://b/x", "http://h/x.jpg", "x" * 400, [], [1], [[1, 2]], [None], {}, {"a": 1}, {"a": {"b": [None]}}, _DELETED,
)  # fmt: skip


def replaced(value: Any) -> Iterator[Any]:
    """The value with each value in it, itself included, replaced by each of JUNK or taken out."""
    for path in _paths(value, ()):
        for junk in JUNK if path else JUNK[:-1]:
            changed = [copy.deepcopy(value)]
            target: Any = changed
            for key in (0, *path)[:-1]:
                target = target[key]
            last = (0, *path)[-1]
            if junk is _DELETED:
                del target[last]
            else:
                target[last] = junk
            yield changed[0]


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _paths(entry, (*path, key))
