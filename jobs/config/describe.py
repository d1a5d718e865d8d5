"""Tables of settings: key, type, default, range and meaning of all that a command takes, from the sections' fields.

`maskfleet settings` prints them; docs/settings.md is made of them.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic_core import PydanticUndefined

from jobs.commands import COMMANDS
from jobs.config.base import fields_of
from jobs.config.segment import RetryConfig
from pipeline.storage.base import Secret

_TYPE_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "any"}


@dataclass(frozen=True)
class Setting:
    """One key of a command.

    Attributes:
        key: dotted; `[]` behind a name stands for each entry of a list.
        type: in words, with the range where there is one.
        default: as JSON, "" where the key has to be given.
        description: what it means, with its unit.
    """

    key: str
    type: str
    default: str
    description: str

    @property
    def section(self) -> str:
        """The key without its last name: "train", "model.spec"; "" for a key that stands alone."""
        return self.key.rpartition(".")[0]


def settings_of(command: str, section: str = "") -> list[Setting]:
    """The settings of a command, or of one of its sections with the sections below it.

    Raises:
        KeyError: no such command.
    """
    every = list(_walk(_configs()[command], ""))
    return [each for each in every if not section or f"{each.key}.".replace("[]", "").startswith(f"{section}.")]


def command_names() -> list[str]:
    """The commands that have settings."""
    return list(_configs())


def to_text(settings: list[Setting]) -> str:
    """Settings for a terminal: a line for each with key, default and type, its meaning below."""
    lines = []
    for each in settings:
        start = (
            f"{each.key} = {each.default}  ({each.type})" if each.default else f"{each.key}  ({each.type}, required)"
        )
        lines += [start, f"    {each.description}"]
    return "\n".join(lines)


def to_markdown() -> str:
    """docs/settings.md: every setting of every command, each section once with the commands that have it."""
    tables: dict[tuple[Setting, ...], list[str]] = {}
    for command in _configs():
        by_section: dict[str, list[Setting]] = {}
        for each in settings_of(command):
            by_section.setdefault(each.section, []).append(each)
        for rows in by_section.values():
            tables.setdefault(tuple(rows), []).append(command)
    parts = [_INTRODUCTION]
    for settings, commands in sorted(tables.items(), key=lambda item: (item[0][0].section, item[1])):
        parts.append(f"## `{settings[0].section}` of {', '.join(commands)}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts += [
            f"| `{each.key}` | {_cell(each.type)} | {f'`{_cell(each.default)}`' if each.default else 'required'} "
            f"| {_cell(each.description)} |"
            for each in settings
        ]
        parts.append("")
    return "\n".join(parts)


def _configs() -> dict[str, type[BaseModel]]:
    """The configuration of each command; that of retry is read from the run it repairs, so it is in no file."""
    return {**{name: command.config for name, command in COMMANDS.items()}, "retry": RetryConfig}


_INTRODUCTION = """# Settings

Every key that a command takes, as `section.key=value` on the command line or in the file of `--config`. This page is
made from the program's own declarations by `python -m tests.policy.settings_page`; `maskfleet settings COMMAND` prints
the same for the version that you have. A key without a default has to be given.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _walk(section: Any, prefix: str) -> Iterator[Setting]:
    for name, field in fields_of(section).items():
        key, kind = f"{prefix}{name}", field.annotation
        below, is_list = _section_in(kind)
        if below is not None:
            yield from _walk(below, f"{key}{'[]' if is_list else ''}.")
            continue
        default, limits = _default_and_limits(section, name)
        allowed = limits.get("allowed")
        words = " or ".join(map(json.dumps, allowed)) if allowed else _type_words(kind)
        span = _range(limits)
        yield Setting(key, f"{words}, {span}" if span else words, default, field.description)


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


def _default_and_limits(section: Any, name: str) -> tuple[str, dict[str, Any]]:
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
        return "credential"
    return _TYPE_WORDS.get(kind, getattr(kind, "__name__", str(kind)))
