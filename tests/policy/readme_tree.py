"""The trees of README.md (folders) and docs/architecture.md (files), made from the first line of each docstring.

`python -m tests.policy.readme_tree` writes both pages anew; `test_tree.py` holds the pages to them.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.paths import DOCS, ROOT

README, ARCHITECTURE = ROOT / "README.md", DOCS / "architecture.md"
START, END = "<!-- tree -->\n", "<!-- end of tree -->\n"
PACKAGES = ("maskfleet", "jobs", "pipeline", "model")  # each imports only those after it
OTHER_FOLDERS = {
    "configs": "Configurations that ship with the program; each file says its purpose, hardware, result and command.",
    "benchmarks": "Benchmarks: each measures a ratio against what a user would run instead.",
    "docs": "The pages that this README links to.",
    "tests": "Tests: x/y.py is tested by tests/x/test_y.py; tests/policy checks the rules, tests/chaos the promises.",
}
WIDTH = 17  # of the folders' names


def folder_tree() -> str:
    """The folders as a code block: a line for each, with the first line of its `__init__.py`."""
    lines = [_folder_line(folder, depth) for package in PACKAGES for folder, depth in _walk(ROOT / package)]
    lines += [f"{name + '/':<{WIDTH}} {about}" for name, about in OTHER_FOLDERS.items()]
    return "\n".join(["```", *lines, "```"]) + "\n"


def file_tree() -> str:
    """The modules as a nested list of links: each with the first line of its docstring."""
    lines = []
    for package in PACKAGES:
        for folder, depth in _walk(ROOT / package):
            lines.append(f"{'  ' * depth}- **{folder.name}/**: {first_line(folder / '__init__.py')}")
            for path in sorted(folder.glob("*.py")):
                if path.name != "__init__.py":
                    link = f"[`{path.name}`](../{path.relative_to(ROOT).as_posix()})"
                    lines.append(f"{'  ' * (depth + 1)}- {link}: {first_line(path)}")
    return "\n".join(lines) + "\n"


def renewed_pages() -> dict[Path, str]:
    """The text that each page with a tree should have."""
    trees = {README: folder_tree(), ARCHITECTURE: file_tree()}
    return {page: with_tree(page.read_text(), tree) for page, tree in trees.items()}


def with_tree(text: str, tree: str) -> str:
    """A page's text with the part between its marks replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{tree}{END}{after}"


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _walk(folder: Path, depth: int = 0) -> list[tuple[Path, int]]:
    """A package and the packages below it, with their depth."""
    inner = (path.parent for path in sorted(folder.glob("*/__init__.py")))
    return [(folder, depth), *(pair for path in inner for pair in _walk(path, depth + 1))]


def _folder_line(folder: Path, depth: int) -> str:
    return f"{'  ' * depth + folder.name + '/':<{WIDTH}} {first_line(folder / '__init__.py')}"


if __name__ == "__main__":
    for page, text in renewed_pages().items():
        page.write_text(text)
