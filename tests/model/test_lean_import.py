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


@pytest.mark.parametrize("module", ["model.network", "model.inference.predictor", "pipeline.bulk.worker"])
def test_the_compiler_is_left_out(module: str) -> None:
    assert run(f"import sys, {module}; print({COMPILER} & set(sys.modules))") == "set()"


@pytest.mark.long
def test_torchvision_by_itself_still_imports_the_compiler() -> None:
    """Fails when it no longer does: `model/lean_import.py` can go then, and `model/vision.py` import it plainly."""
    assert run("import sys, torchvision; print('torch._dynamo' in sys.modules)") == "True"


@pytest.mark.long
def test_torchvisions_question_to_the_compiler_gets_its_answer() -> None:
    program = """
import sys
from model.vision import roi_align
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
assert "torch._dynamo" not in sys.modules
from torch._dynamo.utils import is_compile_supported
assert asked("cpu") == is_compile_supported("cpu")
print(sys.modules["torch._dynamo.utils"].__file__ is not None)
"""
    assert run(program) == "True"


@pytest.mark.long
def test_the_compiler_itself_can_be_imported_afterwards() -> None:
    program = """
import sys
import model.vision
from torch._dynamo.utils import counters
import torch._dynamo
assert counters is torch._dynamo.utils.counters
torch._dynamo.reset()
print(sys.modules["torch._dynamo"].__file__ is not None)
"""
    assert run(program) == "True"
