"""docs/settings.md, made from the declarations of the settings; `test_settings_page.py` holds the page to them.

`python -m tests.policy.settings_page` writes it anew.
"""

from __future__ import annotations

from jobs.commands import CONFIGURED
from jobs.config.describe import Setting, settings_of
from tests.paths import DOCS

PAGE = DOCS / "settings.md"
_INTRODUCTION = """# Settings

Every key that a command takes, as `section.key=value` on the command line or in the file of `--config`. This page is
made from the program's own declarations by `python -m tests.policy.settings_page`; `maskfleet settings COMMAND` prints
the same for the version that you have. A key without a default has to be given.
"""


def to_markdown() -> str:
    """Every setting of every command, each section once with the commands that have it."""
    tables: dict[tuple[Setting, ...], list[str]] = {}
    for name, command in CONFIGURED.items():
        by_section: dict[str, list[Setting]] = {}
        for each in settings_of(command.config):
            by_section.setdefault(each.section, []).append(each)
        for rows in by_section.values():
            tables.setdefault(tuple(rows), []).append(name)
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(to_markdown())
