"""Loads a configuration from YAML and `key=value` overrides and validates it; every fault is one plain sentence.

The sections are declared in the modules beside this one, a module for each group of commands. Only jobs/ knows
configurations: the layers below take plain arguments.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.config.base import INCOMPLETE, fields_of, flatten, section_of
from jobs.config.describe import MISSING, settings_of, to_commented_yaml
from jobs.config.places import map_places
from jobs.home import shipped_configs
from pipeline.manifest import sha256_of, to_json
from pipeline.settings import Settings
from pipeline.storage.base import StorageError
from pipeline.storage.stores import check_uri

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """A wrong configuration; the message names the key, the value and what is allowed."""


class IncompleteError(ConfigError):
    """A configuration that lacks nothing but keys that have to be given."""


def load_config(
    kind: type[Config],
    file: str | Path | None,
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
    folder: str = "",
) -> Config:
    """The validated configuration: the values of a YAML file, overridden by `a.b=value` words; later words win.

    Args:
        kind: the configuration's class.
        file: a YAML file, which may be one that ships with the program; see `find_config`.
        overrides: words of the command line.
        base: the values to start from where `file` is None.
        folder: as for `find_config`.

    Raises:
        ConfigError: an unreadable file, a wrong key, a value out of range, or a place that no store can have; a line
            for each fault.
        IncompleteError: there is no other fault than missing keys.
    """
    values = _read_values(kind, file, overrides, base, folder)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise _to_config_error(kind, error, file) from None
    _check_places(kind, to_plain(config), file)
    return config


def print_config(kind: type[BaseModel], file: str | Path | None, overrides: Sequence[str], folder: str = "") -> str:
    """The configuration as commented YAML that `--config` reads back, see `to_commented_yaml`; keys may be missing.

    Raises:
        ConfigError: as `load_config`, save for missing keys.
    """
    values = _read_values(kind, file, overrides, None, folder)
    try:
        plain = to_plain(kind.model_validate(values))
    except ValidationError as error:
        if not isinstance(fault := _to_config_error(kind, error, file), IncompleteError):
            raise fault from None
        plain = {name: _to_plain_section(kind.model_fields[name].annotation, part) for name, part in values.items()}
    _check_places(kind, plain, file)
    return to_commented_yaml(kind, plain)


def required_keys(kind: type[BaseModel]) -> list[str]:
    """The keys that have to be given, dotted."""
    try:
        kind.model_validate(_read_values(kind, None, (), None, ""))
    except ValidationError as error:
        return [".".join(map(str, fault["loc"])) for fault in error.errors() if fault["type"] == "missing"]
    return []


def _read_values(
    kind: type[BaseModel], file: str | Path | None, overrides: Sequence[str], base: dict[str, Any] | None, folder: str
) -> dict[str, Any]:
    """The values of a file, or those of `base`, with overrides; sections that have to be given are there, if empty."""
    values = read_yaml(find_config(file, folder)) if file is not None else copy.deepcopy(base or {})
    for word in overrides:
        _override(values, word)
    _drop_missing(values)
    _add_sections(kind, values)
    return values


def _drop_missing(values: Any) -> None:
    """Takes out the keys that a printed configuration shows as missing, in place."""
    for name, value in list(values.items()) if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            _drop_missing(value)
        elif value == MISSING and isinstance(values, dict):
            del values[name]


def _add_sections(kind: type[BaseModel], values: dict[str, Any]) -> None:
    """Puts an empty section where a required one is missing, so that its keys are named as missing."""
    for name, field in kind.model_fields.items():
        if fields_of(field.annotation):
            if field.is_required() and values.get(name) is None:
                values[name] = {}
            section: Any = field.annotation
            if issubclass(section, BaseModel) and isinstance(values.get(name), dict):
                _add_sections(section, values[name])


def _to_plain_section(kind: Any, values: Any) -> Any:
    """A section with its defaults, as plain values; as given where it is incomplete."""
    section = TypeAdapter(kind)
    try:
        return section.dump_python(section.validate_python(values), mode="json")
    except ValidationError:
        return values


def _to_config_error(kind: type[BaseModel], error: ValidationError, file: str | Path | None) -> ConfigError:
    lacking = [fault for fault in error.errors() if fault["type"] in ("missing", INCOMPLETE)]
    wrong = [fault for fault in error.errors() if fault not in lacking]
    text = "\n".join(_sentence(kind, fault) for fault in [*wrong, *lacking]) + _where(file)
    return ConfigError(text) if wrong else IncompleteError(text)


def _check_places(kind: type[BaseModel], values: dict[str, Any], file: str | Path | None) -> None:
    """Raises ConfigError for places that no store can have."""
    faults: list[str] = []

    def check(key: str, uri: str) -> str:
        try:
            check_uri(uri)
        except StorageError as error:
            faults.append(f"{key}: {error}")
        return uri

    map_places(kind, values, check)
    if faults:
        raise ConfigError("\n".join(faults) + _where(file))


def _where(file: str | Path | None) -> str:
    return "" if file is None else f" (in {file} and the command line)"


def to_plain(config: BaseModel | Settings) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars, as YAML and JSON hold them."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: BaseModel) -> str:
    """A configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def config_hash(config: BaseModel) -> str:
    """The SHA-256 of a resolved configuration."""
    return sha256_of(to_json(to_plain(config)))


def is_override(word: str) -> bool:
    """Whether a word of the command line is `key=value`: a dotted key before the first '=', which no URI has there."""
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
    where = shipped / folder if (shipped / folder).is_dir() else shipped  # not every command has some of its own
    names = sorted(path.relative_to(shipped).with_suffix("").as_posix() for path in where.rglob("*.yaml"))
    raise ConfigError(f"{key} {name}: there is no such file; these ship with the program: {', '.join(names)}")


def read_yaml(file: str | Path, key: str = "--config") -> dict[str, Any]:
    """The sections of a YAML file by name; `key` is the option or setting that holds its name, for messages.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is no mapping at its top level.
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
    """Sets the value of a dotted key in nested dicts, in place; missing dicts on the way are created."""
    *path, last = key.split(".")
    section = values
    for name in path:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[last] = value


def _value(text: str) -> Any:
    """The value of an override, parsed as YAML; what is no YAML (`*.jpg`), a date or 'a: b' stays text."""
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return text
    is_text = isinstance(value, date) or (isinstance(value, dict) and not text.lstrip().startswith("{"))
    return text if is_text else value


def _sentence(kind: type[BaseModel], fault: Any) -> str:
    """One error of pydantic's as 'key: value is not allowed: reason'; values of credentials are left out."""
    names, value = [str(part) for part in fault["loc"]], fault["input"]
    key = ".".join(names) or "the configuration"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        key = next(iter(flatten(value, f"{key}.")))
        similar = similar_key(kind, key)
        hint = f"did you mean {similar}? " if similar else ""
        return f"{key}: there is no such key; {hint}allowed are {', '.join(_keys_of(kind, names[:-1]))}"
    if fault["type"] == "missing":
        return f"{key}: missing; {_about(kind, names)}"
    reason = fault["msg"].removeprefix("Value error, ")
    if of_spec := re.match(r"(\w+)='(.*?)': (allowed are .*)", reason):  # a field of a component's own dataclass
        key, value, reason = f"{key}.{of_spec[1]}", of_spec[2], of_spec[3]
    reason = reason[:1].lower() + reason[1:]
    if reason.startswith(f"{key}."):  # a section that is wrong as a whole, with the name of the key
        return reason
    choices = [each for each in re.findall("'([^']*)'", reason) if each != str(value)]
    if close := difflib.get_close_matches(str(value), choices, 1):
        reason += f"; did you mean {close[0]}?"
    is_secret = _is_secret(key) or re.search(r"://[^/]*@", str(value)) is not None
    if isinstance(value, dict | BaseModel) or len(str(value)) > 200 or is_secret:
        return f"{key}: {reason}"
    return f"{key}: {value!r} is not allowed: {reason}"


def similar_key(kind: type[BaseModel], key: str) -> str | None:
    """The key or section of a configuration that was meant by a wrong dotted one, or by an option; None for none."""
    key = re.sub(r"\.\d+", "[]", key)  # as `Setting.key` shows the entries of a list
    keys = [each.key for each in settings_of(kind)]
    close = difflib.get_close_matches(key, [*keys, *kind.model_fields], 1, 0.85)
    elsewhere = [each for each in keys if each.rpartition(".")[2] == key.rpartition(".")[2]]
    return next(iter([*close, *elsewhere, *difflib.get_close_matches(key, [*keys, *kind.model_fields], 1)]), None)


def _is_secret(key: str) -> bool:
    """Whether a key, perhaps misspelt, names a credential, whose value is never shown."""
    return re.search(r"secret|token|password|passwd|credential|access_?key|webhook", key, re.IGNORECASE) is not None


def _keys_of(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the section at `path`, sorted."""
    return sorted(fields_of(section_of(kind, path)))


def _about(kind: type[BaseModel], path: list[str]) -> str:
    """The description of the field at `path`."""
    field = fields_of(section_of(kind, path[:-1])).get(path[-1])
    return field.description if field is not None and field.description else "it must be given"
