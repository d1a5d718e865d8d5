"""Imports go one way, in no circle, and cost only what is used; each module says what it is and has its tests."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

LAYERS = ("maskfleet", "jobs", "pipeline", "model")  # each may import those after it
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
PROGRAMS = ("__main__.py", "decode_child.py")  # run by themselves; a child's exit is its own
ROOMS = ("bulk", "dataset", "evaluation", "results")  # of pipeline; all else there is the ground floor
# A room may import the ground floor, itself, and these rooms.
ROOMS_SEEN = {"bulk": (), "dataset": (), "evaluation": ("dataset",), "results": ("evaluation",)}
ROOM_PATHS = [[room] for room in ROOMS]
MAX_MODULES = 15  # in a folder


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def runtime_imports(path: Path) -> frozenset[str]:
    """Every module a file imports when it runs, late imports too; `if TYPE_CHECKING:` blocks do not count."""
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

    visit(parsed(path))
    return frozenset(found)


def imports_of(path: Path, *packages: str) -> list[str]:
    return sorted(name for name in runtime_imports(path) if f"{name}.".startswith(tuple(f"{p}." for p in packages)))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    layer, *rest = path.relative_to(ROOT).parts
    assert not imports_of(path, *LAYERS[: LAYERS.index(layer)])
    if layer == "maskfleet":
        assert not imports_of(path, "torch", "ray", "pyarrow", "pandas", "numpy")
    if layer == "model":
        assert not imports_of(path, "ray", "pyarrow", "pydantic", "fsspec", "pandas")
    if layer == "pipeline":
        assert not imports_of(path, "pydantic", "typer", "rich")
        if relative(path) not in (f"pipeline/bulk/{name}.py" for name in ("run", "pool", "worker")):
            assert not imports_of(path, "ray")
        room = rest[0] if rest[0] in ROOMS else ""
        seen = (room, *ROOMS_SEEN.get(room, ()))
        assert not imports_of(path, *(f"pipeline.{other}" for other in ROOMS if other not in seen))
        if room == "bulk" and rest[1] not in ("predict.py", "photos.py"):  # these two compute with a network
            assert not imports_of(path, "model", "torch")
        if not room:
            assert not imports_of(path, "model")


def test_the_rule_itself_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from pipeline import bulk\nif True:\n    import ray.data\n")
    assert imports_of(file, "ray") == ["ray.data"]
    assert imports_of(file, "pipeline.bulk") == ["pipeline.bulk"]


def circles_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or around corners (Tarjan's strong components)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for imported in sorted(graph[module]):
            if imported not in index:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], index[imported])
        if lowest[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1 or module in graph[module]:
                circles.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return circles


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: set(runtime_imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}
    # `from package import module` names the package too; its own file counts only where something else is taken of it.
    for name, path in MODULES.items():
        graph[name] -= {package for package in graph[name] if not _takes_from(path, package)}
    assert circles_of(graph) == []


def _takes_from(path: Path, module: str) -> bool:
    """Whether a file imports a name of this very module, not only modules below it."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            if any(f"{module}.{alias.name}" not in MODULES for alias in node.names):
                return True
        elif isinstance(node, ast.ImportFrom) and any(f"{node.module}.{a.name}" == module for a in node.names):
            return True
        elif isinstance(node, ast.Import) and any(alias.name == module for alias in node.names):
            return True
    return False


def test_the_rule_itself_sees_a_circle() -> None:
    assert circles_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_model_and_ground_floor_import_without_ray() -> None:
    ground = [name for name in MODULES if name.startswith("pipeline") and name.split(".")[1:2] not in ROOM_PATHS]
    modules = [name for name in MODULES if name.split(".")[0] == "model"] + ground
    code = (
        "import sys\n"
        "for name in ('ray', 'pycocotools', 'pydantic'): sys.modules[name] = None\n"
        f"for name in {sorted(modules)}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_prints_or_exits_outside_jobs(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "jobs" or path.name in PROGRAMS:
        return
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert not names & {"print", "sys.exit", "exit", "quit", "os._exit"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "a module starts with a docstring"
    assert path.stem not in ("utils", "util", "common", "helpers", "misc")


def folders() -> Iterator[Path]:
    return (path.parent for path in SOURCES if path.name == "__init__.py")


@pytest.mark.parametrize("folder", folders(), ids=relative)
def test_a_folder_is_one_room(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name not in ("__init__.py", "__main__.py")], ids=relative)
def test_every_module_has_its_tests(path: Path) -> None:
    test = ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}"
    assert test.is_file(), f"{relative(path)} has no {relative(test)}"


def test_every_test_stands_where_its_module_does() -> None:
    # __init__.py and __main__.py may have tests, as test_init.py and test_main.py.
    known = {f"tests/{relative(path.parent)}/test_{path.stem.strip('_')}.py" for path in SOURCES}
    for layer in LAYERS:
        for test in (ROOT / "tests" / layer).rglob("test_*.py"):
            assert relative(test) in known, f"{relative(test)} is named after no module"
