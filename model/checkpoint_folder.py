"""Checkpoint marker: tells checkpoint folders from other folders without reading weights, and so without torch."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINT_MARKER = "checkpoint.json"


class CheckpointError(ValueError):
    """A folder is no usable checkpoint; the message names the folder, the file and the reason."""


def is_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is a completely written checkpoint, that is, holds the marker."""
    return (Path(folder) / CHECKPOINT_MARKER).is_file()
