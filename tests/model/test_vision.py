"""The one module that imports torchvision for the network."""

from __future__ import annotations

import ast

from tests.paths import ROOT


def test_no_other_module_of_model_imports_torchvision() -> None:
    for path in (ROOT / "model").rglob("*.py"):
        tree = ast.parse(path.read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imports_it = any(name.split(".")[0] == "torchvision" for name in modules)
        assert imports_it == (path.name == "vision.py"), path


def test_every_name_is_used() -> None:
    imported, used = set(), set()
    for path in (ROOT / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "model.vision":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchvision"):
                imported |= {alias.asname or alias.name for alias in node.names}
    assert used == imported
