"""Typed records of annotation entries in JSON: types that formats share, and the fault of a wrong entry."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.types import AnnotationError
from pipeline.storage.files import Location

MOST_COORDINATE_PX = 1e6
"""Distance of a point from the origin, each way."""
Coordinate = Annotated[float, Meta(ge=-MOST_COORDINATE_PX, le=MOST_COORDINATE_PX)]
"""Pixels; NaN and infinity are outside of the range."""
Length = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""A side of an image in pixels."""
MOST_PIXELS = 2**30
"""Of an image whose masks are drawn."""
Name = Annotated[str, Meta(pattern=r"^[^\0]+$")]
"""Of a file or a class: not empty, without NUL."""

Record = TypeVar("Record")
_WORDS = {
    "int": "a whole number",
    "float": "a number from -1000000 to 1000000",
    "str": "a text that is not empty",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_ALLOWED = {"area": "a number from 0 to 10**12 or null", "iscrowd": "0, 1, true, false or null"}


def to_record(entry: object, schema: type[Record], name: str, faults: FaultList) -> Record | None:
    """The entry as a record; None, and a fault, where it breaks the schema.

    Args:
        entry: part of a parsed JSON file.
        schema: a type that msgspec converts to. Numbers are no texts and texts no numbers; true is no number.
        name: of the entry, for the fault, which also has the key, its value, and what is allowed.
    """
    try:
        return msgspec.convert(entry, schema)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
    path = path.strip(".`")
    if missing := re.search("missing required field `(.+)`", message):
        faults.add(f"{name} has no {path}{'.' if path else ''}{missing[1]}")
        return None
    value = entry
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[key] if key else value[int(index)]  # type: ignore[index]  # the path leads through the entry
    expected = re.search("Expected `(.+?)`(.*?)(?:, got .*)?$", message)  # else "Number out of range"
    kinds = expected[1].split(" | ") if expected else ["float"]
    allowed = " or ".join(_WORDS.get(kind, kind) for kind in kinds)
    if expected and kinds[0] in ("int", "array"):  # the range or the length
        allowed += expected[2].replace(">=", "from").replace("<=", "up to")
    allowed = _ALLOWED.get(path, allowed)
    faults.add(f"{name} {f'has {path}' if path else 'is'} {shown(value)}; allowed is {allowed}")
    return None


def only_file(place: Location, usual_name: str) -> Location:
    """The annotation file itself, or that of a folder: of the usual name, else the only one with its extension.

    Raises:
        AnnotationError: there is none, or more than one.
    """
    ending = usual_name[usual_name.rindex(".") :]
    if place.uri.lower().endswith(ending):
        if not place.is_file():
            raise AnnotationError(f"there is no annotation file {place}")
        return place
    names = [name for name in place.iter_names() if name.lower().endswith(ending)]
    names = [usual_name] if usual_name in names else names
    if len(names) != 1:
        kind, found = ending[1:].upper(), ", ".join(names) or "none"
        raise AnnotationError(f"{place} should hold {usual_name} or one {kind} file, but holds: {found}")
    return place / names[0]
