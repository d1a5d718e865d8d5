"""Table of the fields in which two JSON documents differ: what an output was started with, and what is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

_MOST_ROWS = 20
_WIDTH = 36  # characters of a value


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of each field that differs; the key is dotted, with `[i]` for an entry of a list.

    Lists of different lengths are one field. A key that only one side has is null on the other, as are all keys of a
    section that is null.
    """
    if (isinstance(old, dict) and isinstance(new, dict | None)) or (isinstance(new, dict) and old is None):
        before, now = old or {}, new or {}
        for name in sorted(before.keys() | now.keys()):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new)):
            yield from differences(*pair, f"{key}[{number}]")
    elif old != new:
        yield key, old, new


def to_table(rows: Iterable[tuple[str, Any, Any]], there: str) -> str:
    """The differences as lines of text in three columns, long values shortened; of many rows the first 20.

    Args:
        rows: as from `differences`.
        there: title of the column of old values, such as "in the run".
    """
    every = [(key, _shown(old), _shown(new)) for key, old, new in rows]
    shown = [("", there, "asked for"), *every[:_MOST_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    lines = [f"  {key:{widths[0]}}  {old:{widths[1]}}  {new}" for key, old, new in shown]
    more = [f"  and {len(every) - _MOST_ROWS:,} more"] if len(every) > _MOST_ROWS else []
    return "\n".join([*lines, *more])


def _shown(value: Any) -> str:
    """A value as JSON, or as its beginning where it is long; a long list also says how many entries it has."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _WIDTH:
        return text
    count = f"{len(value):,} entries: " if isinstance(value, list) else ""
    return f"{count}{text[: _WIDTH - 3 - len(count)]}..."
