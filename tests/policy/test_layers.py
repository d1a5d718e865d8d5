"""The rules of the house that a reviewer would otherwise have to watch for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.policy.readme_tree import make_tree, readme_with

LAYERS = ("jobs", "pipeline", "model")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
PROGRAMS = ("__main__.py", "decode_child.py")  # run by themselves; a child's exit is its own
GROUND_FLOOR = (
    "pipeline.schema",
    "pipeline.storage",
    "pipeline.storage.local",
    "pipeline.manifest",
    "pipeline.masks.rle",
    "pipeline.masks.rle_kernel",
    "pipeline.masks.boxes",
    "pipeline.storage.cache",
    "pipeline.storage.files",
    "pipeline.images.pixels",
    "pipeline.images.raster",
)


def runtime_imports(path: Path) -> set[str]:
    """Every module a file imports when it runs; `if TYPE_CHECKING:` blocks do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def imports_of(path: Path, *packages: str) -> list[str]:
    return sorted(name for name in runtime_imports(path) if f"{name}.".startswith(tuple(f"{p}." for p in packages)))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    layer, *rest = path.relative_to(ROOT).parts
    if layer == "model":
        assert not imports_of(path, "pipeline", "jobs", "ray", "pyarrow", "pydantic", "fsspec", "pandas")
    if layer == "pipeline":
        assert not imports_of(path, "jobs", "pydantic", "typer", "rich")
        if relative(path) != "pipeline/bulk/run.py":
            assert not imports_of(path, "ray")
        if rest[0] == "bulk":
            assert not imports_of(path, "pipeline.dataset", "pipeline.results")
            if rest[1] != "predict.py":
                assert not imports_of(path, "model", "torch")
        elif rest[0] == "dataset":
            assert not imports_of(path, "pipeline.bulk", "pipeline.results")
        elif rest[0] == "results":
            assert not imports_of(path, "pipeline.bulk")
        else:
            assert not imports_of(path, "pipeline.bulk", "pipeline.dataset", "pipeline.results", "model")


def test_the_rule_itself_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from pipeline import bulk\nif True:\n    import ray.data\n")
    assert imports_of(file, "ray") == ["ray.data"]
    assert imports_of(file, "pipeline.bulk") == ["pipeline.bulk"]


def test_model_and_ground_floor_import_without_ray() -> None:
    modules = [relative(p)[:-3].replace("/", ".") for p in SOURCES if relative(p).startswith("model/")]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = (
        "import sys\n"
        "for name in ('ray', 'pycocotools', 'pydantic', 'pandas'): sys.modules[name] = None\n"
        f"for name in {[*modules, *GROUND_FLOOR]}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_prints_or_exits_outside_jobs(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "jobs" or path.name in PROGRAMS:
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert not names & {"print", "sys.exit", "exit", "quit", "os._exit"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module starts with a docstring"
    assert path.stem not in ("utils", "util", "common", "helpers", "misc")


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme_with(make_tree(), readme) == readme, "run: python tests/policy/readme_tree.py"
