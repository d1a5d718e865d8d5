"""docs/settings.md has every key of every command, as it is declared."""

from __future__ import annotations

from jobs.commands import CONFIGURED
from jobs.config.describe import settings_of
from tests.policy.settings_page import PAGE, to_markdown


def test_the_page_is_as_the_declarations_are() -> None:
    assert PAGE.read_text() == to_markdown(), "run: python -m tests.policy.settings_page"


def test_every_key_of_every_command_is_on_the_page() -> None:
    commands: list[str] = []
    on_the_page: set[tuple[str, str]] = set()
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            commands = line.split(" of ")[1].split(", ")
        elif line.startswith("| `"):
            on_the_page |= {(command, line.split("`")[1]) for command in commands}
    declared = {(command, each.key) for command in CONFIGURED for each in settings_of(CONFIGURED[command].config)}
    assert declared == on_the_page and len(declared) > 500


def test_every_setting_says_what_it_means() -> None:
    assert [
        each.key for command in CONFIGURED for each in settings_of(CONFIGURED[command].config) if not each.description
    ] == []
