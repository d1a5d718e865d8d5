"""Places among the settings, told by the type of each setting: paths and URIs, which other machines may not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from jobs.config.base import fields_of, type_of
from model.presets import PUBLISHED, TORCHVISION_PREFIX
from model.weights.sam import is_hub_name
from pipeline.storage.uri import Place, is_local


@dataclass(frozen=True)
class OverridesOf:
    """Marks the type of a mapping from dotted keys of another configuration to values of theirs, or lists of them."""

    config: type[BaseModel]


def map_places(kind: Any, value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A setting, or a section of them, with every place in it replaced by `change(its dotted key, its value)`.

    Names of published weights, and patterns relative to a photo's own folder, are no places.

    Args:
        kind: its type; the class of a configuration.
        value: as `to_plain` gives it.
        change: gives the new value of a place.
        key: its dotted key; "" is the whole configuration.
    """
    if isinstance(value, list):  # also of a single setting's values, as in a sweep's grid
        item = get_args(kind)[0] if get_origin(kind) in (list, tuple) else kind
        return [map_places(item, each, change, key) for each in value]
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        for mark in marks:
            if isinstance(mark, Place) and isinstance(value, str):
                is_remote = (mark.or_server and not is_local(value)) or (mark.or_hub and is_hub_name(value))
                return change(key, value) if _is_place(value) and not is_remote else value
            if isinstance(mark, OverridesOf) and isinstance(value, Mapping):
                return {
                    name: map_places(type_of(mark.config, name), each, change, name) for name, each in value.items()
                }
    if isinstance(value, Mapping) and (fields := fields_of(kind)):
        prefix = f"{key}." if key else ""
        known = {name: fields[name].annotation for name in value if name in fields}
        return {name: map_places(known.get(name), each, change, prefix + name) for name, each in value.items()}
    if isinstance(value, Mapping) and get_origin(kind) is dict:
        return {name: map_places(get_args(kind)[1], each, change, f"{key}.{name}") for name, each in value.items()}
    if get_origin(kind) in (list, tuple):
        return value  # a single value, of a setting that is one or several
    for choice in get_args(kind):  # such as a section or None
        value = map_places(choice, value, change, key)
    return value


def _is_place(value: str) -> bool:
    return value not in PUBLISHED and not value.startswith((TORCHVISION_PREFIX, "{"))
