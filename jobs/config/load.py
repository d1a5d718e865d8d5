"""Loads a configuration from YAML and `key=value` overrides and validates it; every fault is one plain sentence.

The sections themselves are declared in the modules beside this one, a module for each group of commands. Only jobs/ knows
configurations: the layers below take plain arguments.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.home import shipped_configs
from pipeline.manifest import sha256_of, to_json

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration is wrong. The message names the key, the value and what is allowed."""


def load_config(
    kind: type[Config],
    file: str | Path | None,
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
    folder: str = "",
) -> Config:
    """The configuration of a YAML file (or of the values `base`) and `a.b=value` words, later words winning.

    `file` may name one that ships with the program; see `find_config`, also for `folder`.

    Raises:
        ConfigError: an unreadable file, a wrong key, a value out of range; one sentence a fault.
    """
    values = read_yaml(find_config(file, folder)) if file is not None else dict(base or {})
    for word in overrides:
        _override(values, word)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = f" (in {file} and the command line)" if file is not None else ""
        raise ConfigError("\n".join(_sentence(kind, fault) for fault in error.errors()) + where) from None


def to_plain(config: BaseModel) -> dict[str, Any]:
    """A configuration as plain values, as YAML and JSON hold them."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: BaseModel) -> str:
    """A configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def config_hash(config: BaseModel) -> str:
    """The SHA-256 of a resolved configuration."""
    return sha256_of(to_json(to_plain(config)))


def is_override(word: str) -> bool:
    """Whether a word of the command line is `key=value` (a URI may hold '=' too, but no key looks like one)."""
    return re.match(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*=", word) is not None


def find_config(name: str | Path, folder: str = "", key: str = "--config") -> Path:
    """The path of a settings file: the file `name` itself where it exists, else one that ships with the program.

    Args:
        name: a path; or a shipped file as `tiny_cpu` (in `folder`), `train/tiny_cpu` or `configs/train/tiny_cpu.yaml`.
        folder: the command's folder of the shipped configurations, such as "train"; "" is all of them.
        key: the option or setting that holds the name, for messages.

    Raises:
        ConfigError: no file of that name, here or among the shipped ones, which the message lists.
    """
    if Path(name).exists() and not Path(name).is_dir():
        return Path(name)
    shipped = shipped_configs()
    relative = Path(str(name).removeprefix("configs/").removesuffix(".yaml") + ".yaml")
    if not relative.is_absolute() and ".." not in relative.parts:
        for path in (shipped / folder / relative, shipped / relative):
            if path.is_file():
                return path
    names = sorted(path.relative_to(shipped).with_suffix("").as_posix() for path in (shipped / folder).rglob("*.yaml"))
    raise ConfigError(f"{key} {name}: there is no such file; these ship with the program: {', '.join(names)}")


def read_yaml(file: str | Path, key: str = "--config") -> dict[str, Any]:
    """The sections of a YAML file; `key` is what named it, for messages.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no sections.
    """
    try:
        values = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise ConfigError(f"{key} {file}: cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {file}: no valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{key} {file}: holds a {type(values).__name__}; allowed are sections of key: value")
    return values


def _override(values: dict[str, Any], word: str) -> None:
    if not is_override(word):
        shown = re.sub(r"=.*", "=***", word, flags=re.DOTALL) if _is_secret(word.partition("=")[0]) else word
        raise ConfigError(f"{shown!r} is not understood; allowed are words like section.key=value")
    key, text = word.split("=", 1)
    set_value(values, key, _value(text))


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of a dotted key in nested sections, which are made as needed."""
    *path, last = key.split(".")
    section = values
    for name in path:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[last] = value


def _value(text: str) -> Any:
    """A word's value as YAML reads it; what is no YAML (`*.jpg`), a date or 'a: b' is taken as the text it is."""
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return text
    unmeant = isinstance(value, date) or (isinstance(value, dict) and not text.lstrip().startswith("{"))
    return text if unmeant else value


def _sentence(kind: type[BaseModel], fault: Any) -> str:
    """One fault of pydantic's as 'key: value is not allowed: reason'."""
    names = [str(part) for part in fault["loc"]]
    key = ".".join(names) or "the configuration"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _keys_of(kind, names[:-1])
        near = difflib.get_close_matches(names[-1], allowed, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{key}: there is no such key; {hint}allowed are {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing; {_about(kind, names)}"
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    given = str(fault["input"])
    is_secret = _is_secret(key) or re.search(r"://[^/]*@", given) is not None
    if isinstance(fault["input"], dict | BaseModel) or len(given) > 200 or is_secret:
        return f"{key}: {reason}"
    return f"{key}: {fault['input']!r} is not allowed: {reason}"


def _is_secret(key: str) -> bool:
    """Whether a key, perhaps misspelt, is one whose value is never shown."""
    return re.search(r"secret|token|password|passwd|credential|access_?key|webhook", key, re.IGNORECASE) is not None


def _keys_of(kind: type[BaseModel], path: list[str]) -> list[str]:
    section = _section(kind, path)
    fields = getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {})
    return sorted(fields)


def _about(kind: type[BaseModel], path: list[str]) -> str:
    section = _section(kind, path[:-1])
    field = getattr(section, "model_fields", {}).get(path[-1])
    return field.description if field is not None and field.description else "it must be given"


def _section(kind: Any, path: list[str]) -> Any:
    for name in path:
        field = getattr(kind, "model_fields", {}).get(name)
        if field is None:
            return kind
        kind = next((arg for arg in get_args(field.annotation) if isinstance(arg, type)), field.annotation)
    return kind
