"""Which checkpoint a URI means: a checkpoint folder itself, or the newest complete one of a training output."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import CheckpointError, is_checkpoint
from pipeline.storage import is_local, local_path


def find_checkpoint(uri: str) -> Path:
    """The folder of the checkpoint that a URI names.

    Args:
        uri: a checkpoint folder, or a training output with `checkpoints/step-*` in it.

    Raises:
        CheckpointError: nothing there, or nothing complete; the message says what was looked for.
    """
    if not is_local(uri):
        raise CheckpointError(f"{uri}: checkpoints are read from local or shared folders; copy it to one")
    folder = local_path(uri)
    if is_checkpoint(folder):
        return folder
    complete = [step for step in sorted(folder.glob("checkpoints/step-*"), reverse=True) if is_checkpoint(step)]
    if complete:
        return complete[0]
    there = "holds no checkpoint" if folder.exists() else "does not exist"
    raise CheckpointError(f"{folder} {there}; give a checkpoint folder (it has a checkpoint.json) or a training output")
