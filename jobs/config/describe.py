"""Tables of settings: key, type, default, range and meaning of all that a command takes, from the sections' fields.

`maskfleet settings` and `--print-config` print them; completion, suggestions and docs/settings.md are made of them.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic_core import PydanticUndefined

from jobs.config.base import fields_of
from pipeline.storage.base import Secret

MISSING = "???"  # stands for the value of a key that has to be given, in a printed configuration
_CREDENTIAL = "credential"
_TYPE_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "any"}


@dataclass(frozen=True)
class Setting:
    """One key of a command.

    Attributes:
        key: dotted; `[]` behind a name stands for each entry of a list.
        type: in words, with the range where there is one.
        default: as JSON, "" where the key has to be given.
        description: what it means, with its unit.
        choices: the values it may have, where they are few; () elsewhere.
        is_place: whether it is a path or URI.
    """

    key: str
    type: str
    default: str
    description: str
    choices: tuple[str, ...] = ()
    is_place: bool = False

    @property
    def section(self) -> str:
        """The key without its last name: "train", "model.spec"; "" for a key that stands alone."""
        return self.key.rpartition(".")[0]


def settings_of(section: Any, prefix: str = "") -> list[Setting]:
    """Every setting of a configuration, or of a section of one, in the order of its declaration.

    Args:
        section: the class of the configuration or section.
        prefix: stands in front of each key, such as "model.".
    """
    settings = []
    for name, field in fields_of(section).items():
        below, is_list = _section_in(field.annotation)
        if below is not None:
            settings += settings_of(below, f"{prefix}{name}{'[]' if is_list else ''}.")
            continue
        default, limits = _default_and_limits(section, name)
        kind, choices = _type_and_range(field.annotation, limits), _choices(field.annotation, limits)
        is_place = "Place(" in str(field.annotation)
        settings.append(Setting(f"{prefix}{name}", kind, default, field.description, choices, is_place))
    return settings


def within(settings: Iterable[Setting], section: str) -> list[Setting]:
    """The settings of a section, such as "model.spec", with the sections below it."""
    return [each for each in settings if f"{each.key}.".replace("[]", "").startswith(f"{section}.")]


def to_text(settings: Iterable[Setting]) -> str:
    """Settings for a terminal: a line for each with key, default and type, its meaning below."""
    lines = []
    for each in settings:
        start = (
            f"{each.key} = {each.default}  ({each.type})" if each.default else f"{each.key}  ({each.type}, required)"
        )
        lines += [start, f"    {each.description}"]
    return "\n".join(lines)


def to_commented_yaml(section: Any, values: Mapping[str, Any]) -> str:
    """A configuration as YAML that `--config` reads back, each value with its meaning and range behind it.

    Args:
        section: the class of the configuration.
        values: as plain dicts, lists and scalars. A value that is left out has its default; one without a default is
            shown as `???`, which counts as missing where it is read.
    """
    return "\n".join(_yaml_lines(section, values, "")) + "\n"


def _yaml_lines(section: Any, values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in fields_of(section).items():
        below, is_list = _section_in(field.annotation)
        default, limits = _default_and_limits(section, name)
        value = values.get(name, json.loads(default) if default else MISSING)
        if below is not None and not is_list and (isinstance(value, Mapping) or value == MISSING):
            yield f"{indent}{name}:{_comment(field.description or str(below.__doc__).splitlines()[0])}"
            yield from _yaml_lines(below, {} if value == MISSING else value, f"{indent}  ")
        elif below is not None and is_list and isinstance(value, list) and value:
            yield f"{indent}{name}:{_comment(field.description)}"
            for entry in value:
                lines = _yaml_lines(below, entry, "")
                yield from (f"{indent}{'  ' if number else '- '}{line}" for number, line in enumerate(lines))
        else:
            kind = "section" if below is not None else _type_and_range(field.annotation, limits)
            if kind.startswith(_CREDENTIAL) and value != MISSING:
                value = None  # stars would be read back as the credential
            required = "required: " if value == MISSING else ""
            yield f"{indent}{name}: {_flow(value)}{_comment(f'{required}{field.description} ({kind})')}"


def _comment(text: str) -> str:
    return f"  # {' '.join(text.split())}"


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    if value == MISSING:
        return MISSING
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return json.dumps(value) if "\n" in text else text


def _type_and_range(kind: Any, limits: Mapping[str, Any]) -> str:
    allowed = limits.get("allowed")
    words = " or ".join(map(json.dumps, allowed)) if allowed else _type_words(kind)
    span = _range(limits)
    return f"{words}, {span}" if span else words


def _choices(kind: Any, limits: Mapping[str, Any]) -> tuple[str, ...]:
    if limits.get("allowed"):
        return tuple(map(str, limits["allowed"]))
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(choice for arg in get_args(kind) for choice in _choices(arg, {}))
    return ("true", "false") if kind is bool else ()


def _section_in(kind: Any) -> tuple[Any, bool]:
    """The section that a type is, may be (`X | None`) or lists (`tuple[X, ...]`), and whether it lists it."""
    if fields_of(kind):
        return kind, False
    origin = get_origin(kind)
    if origin in (Annotated, tuple, list, Union, types.UnionType):
        for arg in get_args(kind):
            section, is_list = _section_in(arg)
            if section is not None:
                return section, is_list or origin in (tuple, list)
    return None, False


def _default_and_limits(section: Any, name: str) -> tuple[str, Mapping[str, Any]]:
    """The default as JSON ("" for none), and the limits by name: ge, gt, le, lt, min_length, allowed."""
    if issubclass(section, BaseModel):
        info = section.model_fields[name]
        limits = {
            limit: getattr(each, limit)
            for each in info.metadata
            for limit in ("ge", "gt", "le", "lt", "min_length")
            if getattr(each, limit, None) is not None
        }
        value = info.get_default(call_default_factory=True)
        return "" if value is PydanticUndefined else _to_json(value), limits
    field = next(each for each in dataclasses.fields(section) if each.name == name)
    limits = {"ge": field.metadata.get("low"), "le": field.metadata.get("high"), **field.metadata}
    if field.default_factory is not dataclasses.MISSING:
        return _to_json(field.default_factory()), limits
    return "" if field.default is dataclasses.MISSING else _to_json(field.default), limits


def _range(limits: Mapping[str, Any]) -> str:
    low, high = limits.get("ge"), limits.get("le")
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    words = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "not empty"}
    parts = [text.format(_number(limits[name])) for name, text in words.items() if limits.get(name) is not None]
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _to_json(value: Any) -> str:
    return json.dumps(TypeAdapter(type(value)).dump_python(value, mode="json"), ensure_ascii=False)


def _type_words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_words(args[0])
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_words(arg) for arg in args)
    if origin in (tuple, list):
        items = [arg for arg in args if arg is not Ellipsis]
        if len(items) > 1:
            return f"[{', '.join(map(_type_words, items))}]"
        return (
            f"list of ({_type_words(items[0])})"
            if " or " in _type_words(items[0])
            else f"list: {_type_words(items[0])}"
        )
    if origin in (dict, Mapping):
        return "mapping"
    if kind in (Secret, SecretStr):
        return _CREDENTIAL
    return _TYPE_WORDS.get(kind, getattr(kind, "__name__", str(kind)))
