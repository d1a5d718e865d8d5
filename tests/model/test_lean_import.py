"""torchvision comes without torch's compiler, until somebody needs the compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

COMPILER = "{'torch._dynamo', 'torch._inductor', 'triton', 'sympy'}"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "model.inference.predictor",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("model.network", "pipeline.bulk.worker")),
    ],
)
def test_the_compiler_is_left_out(module: str) -> None:
    assert run(f"import sys, {module}; print({COMPILER} & set(sys.modules))") == "set()"


@pytest.mark.long
def test_torchvision_by_itself_still_imports_the_compiler() -> None:
    """Fails when it no longer does: `model/lean_import.py` can go then, and `model/vision.py` import it plainly."""
    assert run("import sys, torchvision; print('torch._dynamo' in sys.modules)") == "True"


@pytest.mark.long
def test_the_compiler_works_afterwards() -> None:
    program = """
import model.vision, torch
print(torch.compile(lambda x: 2 * x + 1, backend="eager")(torch.ones(2)).tolist())
"""
    assert run(program) == "[3.0, 3.0]"
