"""Names that other libraries keep to themselves: none is used but those listed here, each with its reason."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

OURS = ("maskfleet", "jobs", "pipeline", "model", "benchmarks", "tests")
SOURCES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
# (file, name): why there is no public way. A use that is gone is removed from here, which a test asks for.
ALLOWED = {
    (
        "jobs/interrupt.py",
        "importlib._bootstrap",
    ): "as Python's import code is named in a frame; nothing public tells whether an import is under way",
    (
        "model/lean_import.py",
        "torch._dynamo",
    ): "torchvision asks for the compiler while it is imported; test_lean_import.py tells when it no longer does",
    ("model/lean_import.py", "torch._dynamo.utils"): "as above",
    ("model/weights/unpickler.py", "numpy._core"): "the name as it stands in pickled files",
    (
        "tests/model/pretend_gpu.py",
        "torch.utils._python_dispatch.TorchDispatchMode",
    ): "torch's own way to see each operation; its documentation names no public one",
    ("tests/model/training/test_train_step.py", "torch.utils._python_dispatch.TorchDispatchMode"): "as above",
    ("tests/model/pretend_gpu.py", "Tensor._make_wrapper_subclass"): "the one way to a tensor that says it is on a GPU",
    (
        "tests/model/pretend_gpu.py",
        "torch._C._ensureCUDADeviceGuardSet",
    ): "without a driver torch cannot enter a device that is only said to be there",
    ("tests/model/pretend_gpu.py", "torch._C"): "as above",
    (
        "tests/jobs/cluster/test_manifests.py",
        "ray.autoscaler._private.util.prepare_config",
    ): "the only checker of `ray up` files, and the oracle for ours",
    ("tests/jobs/cluster/test_manifests.py", "ray.autoscaler._private.util.validate_config"): "as above",
    (
        "tests/jobs/cluster/test_submit.py",
        "ray._private.ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR",
    ): "tells when Ray renames the variable of `jobs.cluster.submit.HOOK_VARIABLE`, which has no public name",
}
# Text that names a private module, as for importlib and sys.modules.
MODULE_PATH = re.compile(r"[a-z]\w*(\.\w+)*\._[a-z]\w*(\.\w+)*")
PUBLIC = {"os._exit", "_repr_png_"}  # documented, in spite of their names: the second is what notebooks call


@functools.cache
def definitions(path: Path) -> frozenset[str]:
    """Private names that a file defines: functions, classes, arguments, variables, and attributes that it sets."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(name for name in names if is_private(name))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_names(path: Path) -> set[str]:
    """Private names of others that a file uses: attributes, imports, and names as text for getattr and its like."""
    tree = ast.parse(path.read_text())
    own = set(definitions(path))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] in OURS:
                own |= definitions(MODULES[module]) if module in MODULES else frozenset()
                for alias in node.names:
                    inner = MODULES.get(f"{module}.{alias.name}")
                    own |= definitions(inner) if inner else frozenset()
            elif any(map(is_private, [*module.split("."), *(alias.name for alias in node.names)])):
                used |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if any(map(is_private, alias.name.split(".")))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            used.add(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and node.attr == "__dict__":
            used.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_PATH.fullmatch(node.value):
            used.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            *("getattr", "setattr", "hasattr", "delattr", "delitem", "attrgetter", "object"),
        ):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            used |= {text for text in texts if is_private(text.split(".")[-1]) and text.split(".")[-1] not in own}
    return used - PUBLIC


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_private_name_of_another_library_is_used(path: Path) -> None:
    assert foreign_names(path) == {name for file, name in ALLOWED if file == label(path)}


def test_every_exception_is_of_a_file_that_is_there() -> None:
    assert {file for file, _ in ALLOWED} <= {label(path) for path in SOURCES}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("network._modules.clear()", "network._modules"),
        ("self._iterator.close()", "self._iterator"),
        ("import ray._private.services", "ray._private.services"),
        ("from torchvision.models.detection._utils import BoxCoder", "torchvision.models.detection._utils.BoxCoder"),
        ("from fsspec import _version", "fsspec._version"),
        ("getattr(loader, '_shutdown_workers')()", "_shutdown_workers"),
        ("monkeypatch.setattr('ray.util._thing', 1)", "ray.util._thing"),
        ("layer.__dict__.update(other)", "layer.__dict__"),
        ("importlib.import_module('torch._dynamo')", "torch._dynamo"),
        ("os._exit(1)", None),
        ("def _ours(): pass\n_ours()\nsome._ours", None),
        ("self._count = 1\nprint(self._count)", None),
    ],
)
def test_the_rule_itself_sees_a_private_name(tmp_path: Path, line: str, name: str | None) -> None:
    file = tmp_path / "file.py"
    file.write_text(line)
    assert foreign_names(file) == ({name} if name else set())
