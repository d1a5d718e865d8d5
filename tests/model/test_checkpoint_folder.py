"""Checkpoint folders are told from other folders by their marker, without torch."""

import subprocess
import sys

from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError, is_checkpoint
from tests.paths import ROOT


def test_only_a_folder_with_the_marker_is_a_checkpoint(tmp_path):
    assert not is_checkpoint(tmp_path) and not is_checkpoint(tmp_path / "absent")
    (tmp_path / "model.safetensors").touch()
    assert not is_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_MARKER).mkdir()
    assert not is_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_MARKER).rmdir()
    (tmp_path / CHECKPOINT_MARKER).touch()
    assert is_checkpoint(tmp_path) and is_checkpoint(str(tmp_path))
    assert not is_checkpoint(tmp_path / CHECKPOINT_MARKER)


def test_a_checkpoint_error_is_a_value_error():
    assert issubclass(CheckpointError, ValueError)


def test_the_question_loads_no_torch():
    program = "import sys, model.checkpoint_folder; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
