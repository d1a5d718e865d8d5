"""Settings of a component as a frozen dataclass: default, range and meaning of each field, and the check of them.

The same dataclass is a section of the configuration: pydantic, which only jobs/ imports, reads the fields' metadata.
"""

from __future__ import annotations

import dataclasses
from typing import Any


class Settings:
    """Base of dataclasses of settings: unknown keys are refused, ranges are checked.

    Raises:
        ValueError: a field out of its range; the message names field, value and what is allowed.
    """

    __pydantic_config__ = {"extra": "forbid", "coerce_numbers_to_str": True}  # noqa: RUF012 (pydantic's own form)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            _check(each.name, getattr(self, each.name), each.metadata)


def setting(
    default: Any = dataclasses.MISSING,
    description: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
) -> Any:
    """A field of a `Settings` dataclass. Without a default it has to be given.

    Args:
        default: its value where none is given.
        description: what it means, with its unit; what None means where it may be None.
        ge, gt, le, lt: the number is at least, above, at most, below this.
        min_length: least length of a string or tuple.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"description": description, **given})


def _check(name: str, value: Any, metadata: Any) -> None:
    if value is None:
        return
    # Written so that NaN fails too.
    allowed = {
        "at least {}": "ge" not in metadata or value >= metadata["ge"],
        "greater than {}": "gt" not in metadata or value > metadata["gt"],
        "at most {}": "le" not in metadata or value <= metadata["le"],
        "less than {}": "lt" not in metadata or value < metadata["lt"],
        "at least {} long": "min_length" not in metadata or len(value) >= metadata["min_length"],
    }
    for (words, is_allowed), limit in zip(allowed.items(), ("ge", "gt", "le", "lt", "min_length")):
        if not is_allowed:
            raise ValueError(f"{name} is {value!r}; it must be {words.format(metadata[limit])}")
