"""Shell completion of `key=value` words: the keys of a command, their few allowed values, files and shipped names.

The shells ask through typer (`maskfleet --install-completion`). Where nothing is offered they complete file names
themselves. bash takes `key=value` for three words and wants the value alone; zsh and fish want the whole word.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import typer

from jobs.commands import CONFIGURED
from jobs.home import shipped_configs

if TYPE_CHECKING:
    from jobs.config.describe import Setting


def complete_words(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What a word of a command may become, each with its meaning: sections, then their keys, then values."""
    from jobs.config.describe import settings_of

    command = CONFIGURED[context.info_name or ""]
    settings = {each.key: each for each in settings_of(command.config) if "[]" not in each.key}
    words = [word for word in context.params.get("words") or () if word != "="]
    if words and words[-1] in settings:  # bash, behind the =
        return [(value, "") for value in settings[words[-1]].choices]
    key, equals, value = incomplete.partition("=")
    if equals:
        choices = settings[key].choices or _files(value) if key in settings else ()
        return [(f"{key}={choice}", "") for choice in choices]
    found = _keys(settings.values(), incomplete)
    return found + ([(name, "") for name in _files(incomplete)] if command.words or command.list_word else [])


def _keys(settings: Collection[Setting], start: str) -> list[tuple[str, str]]:
    """The sections and keys that begin so; of a single section its keys, of a single key its values."""
    matching = [each for each in settings if each.key.startswith(start)]
    found = {}
    for each in matching:
        end = each.key.find(".", len(start)) + 1
        found[each.key[:end] if end else f"{each.key}="] = "" if end else _short(each)
    if len(found) != 1:
        return list(found.items())
    if len(matching) > 1:
        return _keys(matching, *found)
    # Two offers at least, so that no shell puts a space behind the =.
    (only,) = matching
    default = "[" if only.default[:1] in ("[", "{") else only.default.strip('"')
    values = only.choices or ("", "./" if only.is_place else default or "null")
    return [(f"{only.key}={value}", _short(only)) for value in values]


def _short(setting: Setting) -> str:
    """The beginning of its meaning; typer folds longer text into lines, which fish takes for offers."""
    return textwrap.shorten(setting.description, 60, placeholder="...")


def complete_config(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the configurations that ship for a command, and files."""
    folder = shipped_configs() / (context.info_name or "")
    return [*sorted(path.stem for path in folder.glob("*.yaml")), *_files(incomplete)]


def complete_command(incomplete: str) -> Iterable[str]:
    """Commands that have settings."""
    return CONFIGURED


def complete_section(context: typer.Context, incomplete: str) -> Iterable[str]:
    """Sections of the settings of a command."""
    from jobs.config.describe import settings_of

    command = CONFIGURED.get(context.params.get("command") or "")
    return dict.fromkeys(each.section for each in settings_of(command.config)) if command else ()


def complete_submitted(incomplete: str) -> Iterable[str]:
    """Commands that can be submitted."""
    from jobs.cluster.job_package import SUBMITTED

    return SUBMITTED


def _files(start: str) -> Iterator[str]:
    """Files and folders whose path begins so; a folder's ends in '/'."""
    folder, _, name = start.rpartition("/")
    try:
        entries = sorted(os.scandir(folder + "/" if "/" in start else "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
            yield start[: len(start) - len(name)] + entry.name + ("/" if entry.is_dir() else "")
