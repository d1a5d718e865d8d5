"""The trees in README.md and docs/architecture.md are those of the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.policy.readme_tree import ARCHITECTURE, END, PACKAGES, README, START, renewed_pages, with_tree

PYTHON_FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("page", [README, ARCHITECTURE], ids=lambda page: page.name)
def test_the_tree_of_the_page_is_that_of_the_sources(page: Path) -> None:
    assert page.read_text().count(START) == page.read_text().count(END) == 1
    assert page.read_text() == renewed_pages()[page], "renew it with: python -m tests.policy.readme_tree"


def test_the_file_tree_names_each_module_once() -> None:
    text = ARCHITECTURE.read_text()
    for path in PYTHON_FILES:
        if path.name != "__init__.py":
            assert text.count(f"[`{path.name}`](../{path.relative_to(ROOT).as_posix()}): ") == 1


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_first_line_of_a_docstring_is_whole(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, _, rest = doc.partition("\n")
    assert first.endswith(".") and (not rest or rest.startswith("\n")), "the first line is a sentence of its own"


def test_only_the_tree_of_a_page_is_replaced() -> None:
    assert with_tree(f"a\n{START}old\n{END}b\n", "new\n") == f"a\n{START}new\n{END}b\n"
