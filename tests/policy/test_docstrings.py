"""Every public function, method and class says what it gives, and explains no argument that it does not take."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

SOURCES = sorted(path for layer in ("maskfleet", "jobs", "pipeline", "model") for path in (ROOT / layer).rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def iter_public(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple[str, Definition]]:
    """Public definitions as (dotted name, node); what is defined inside a function is nobody else's business."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{owner}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from iter_public(node, f"{owner}{node.name}.")


def inherited_doc(path: Path, name: str) -> str | None:
    """What a base class says of a method, where it says anything."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return inspect.getdoc(value) if value is not None else None


def names_under(doc: str, heading: str) -> list[str]:
    """The names that a section of a docstring explains: 'a, b: what'."""
    found = re.search(rf"^{heading}:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(doc), re.M)
    if found is None:
        return []
    lines = [line for line in found.group(1).splitlines() if re.match(r" {4}[\w*]", line)]
    return [name.strip().lstrip("*") for line in lines for name in line.partition(":")[0].split(",") if ":" in line]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_public_name_is_documented(path: Path) -> None:
    silent, wrong = [], []
    for name, node in iter_public(ast.parse(path.read_text())):
        doc = ast.get_docstring(node)
        if not doc:
            if "." not in name or not inherited_doc(path, name):
                silent.append(name)
            continue
        if isinstance(node, ast.ClassDef):
            continue
        given = node.args
        arguments = {argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        arguments |= {argument.arg for argument in (given.vararg, given.kwarg) if argument is not None}
        if unknown := [explained for explained in names_under(doc, "Args") if explained not in arguments]:
            wrong.append(f"{name} explains {unknown[0]}, which it does not take")
    assert (silent, wrong) == ([], [])


def test_the_rule_itself_sees_a_silent_function_and_a_wrong_argument() -> None:
    tree = ast.parse("def f(a):\n    return a\nclass C:\n    '''Is.'''\n    def g(self): ...\n    def _h(self): ...\n")
    assert [name for name, node in iter_public(tree) if not ast.get_docstring(node)] == ["f", "C.g"]
    doc = "Gives.\n\nArgs:\n    a, b: two,\n        on two lines: so.\n    c: one.\n\nReturns:\n    d: no argument.\n"
    assert names_under(doc, "Args") == ["a", "b", "c"]
