"""torchvision comes without torch's compiler, until somebody needs the compiler."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

COMPILER = "{'torch._dynamo', 'torch._inductor', 'triton', 'sympy'}"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["model.network", "model.predictor", "pipeline.bulk.predict", "jobs.cli"])
def test_the_compiler_is_left_out(module: str) -> None:
    assert run(f"import sys, {module}; print({COMPILER} & set(sys.modules))") == "set()"


def test_torchvisions_question_to_the_compiler_gets_its_answer() -> None:
    program = """
import sys, model
from torchvision.ops import roi_align
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
assert "torch._dynamo" not in sys.modules
from torch._dynamo.utils import is_compile_supported
assert asked("cpu") == is_compile_supported("cpu")
print(sys.modules["torch._dynamo.utils"].__file__ is not None)
"""
    assert run(program) == "True"


def test_whatever_else_is_asked_of_a_stand_in_is_the_compilers_own() -> None:
    program = """
import sys
from model import lean_import
sys.modules.update({name: lean_import._StandIn(name) for name in lean_import._COMPILER})
from torch._dynamo.utils import counters
import torch._dynamo
assert counters is torch._dynamo.utils.counters
torch._dynamo.reset()
print(sys.modules["torch._dynamo"].__file__ is not None)
"""
    assert run(program) == "True"
