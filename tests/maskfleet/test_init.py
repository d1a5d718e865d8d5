"""The public face: every name is there, editors see the same names, and importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import maskfleet
from tests.paths import ROOT


def names_for_editors() -> set[str]:
    """The names of the block that only type checkers and editors read."""
    tree = ast.parse((ROOT / "maskfleet" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    # Type checkers take a name of a package's own from `import x as x` or an assignment alone.
    imported = {alias.asname for node in imports for alias in node.names if alias.asname is not None}
    declared: list[ast.expr] = [node.target for node in block.body if isinstance(node, ast.AnnAssign)]
    declared += [target for node in block.body if isinstance(node, ast.Assign) for target in node.targets]
    return imported | set(map(ast.unparse, declared))


@pytest.mark.parametrize("name", [*maskfleet.__all__, "__version__"])
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(maskfleet, name) is not None


def test_dir_lists_each_name_once_before_any_is_used() -> None:
    program = "import maskfleet; print(*dir(maskfleet))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert {*maskfleet.__all__, "__version__"} <= set(names) and len(names) == len(set(names))


def test_editors_know_the_same_names() -> None:
    assert names_for_editors() == {*maskfleet.__all__, "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_instnces"):
        _ = maskfleet.load_instnces
