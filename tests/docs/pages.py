"""The documentation pages, parsed into their blocks of commands, programs and settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.paths import ROOT

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", *DOCS)


@dataclass(frozen=True)
class Block:
    """A code block of a page: its kind ('commands', 'python', 'yaml', ''), its text, and the line it starts in."""

    page: str
    kind: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """Its command lines; lines that end in a backslash are joined with the next."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [line.strip() for line in joined.splitlines() if line.strip()]


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page in order: fenced blocks by their language, indented blocks as commands."""
    blocks: list[Block] = []
    kind, lines, start, was_blank = None, list[str](), 0, True
    text = (ROOT / page).read_text("utf-8").splitlines()
    for number, line in enumerate([*text, ""], 1):
        if kind is not None and kind != "commands":
            if line.startswith("```"):
                blocks.append(Block(page, kind, "\n".join(lines) + "\n", start))
                kind, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            kind, start = line[3:].strip(), number + 1
        elif line.startswith("    ") and (kind == "commands" or was_blank):
            kind, start = "commands", start if kind == "commands" else number
            lines.append(line[4:])
        elif kind == "commands" and line.strip():
            blocks.append(Block(page, kind, "\n".join(lines) + "\n", start))
            kind, lines = None, []
        elif kind == "commands" and number > len(text):
            blocks.append(Block(page, kind, "\n".join(lines) + "\n", start))
        was_blank = not line.strip()
    return blocks
