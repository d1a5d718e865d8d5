"""Checkpoint marker: tells checkpoint folders from other folders without reading weights, and so without torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

CHECKPOINT_MARKER = "checkpoint.json"
WEIGHTS = "model.safetensors"
INT8_PREFIX = "int8-"
"""Begins the names of the files that mode int8 computes with, in a checkpoint that was quantised."""


class CheckpointError(ValueError):
    """A folder is no usable checkpoint; the message names the folder, the file and the reason."""


def is_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is a completely written checkpoint, that is, holds the marker."""
    return (Path(folder) / CHECKPOINT_MARKER).is_file()


def identity_of(sha256s: Mapping[str, str]) -> str:
    """The sha256, in hexadecimal, that tells a checkpoint from others: that of its weights.

    Where it was quantised, one over the hashes of its weights and of the files of mode int8.

    Args:
        sha256s: Hash of each of its files, by name.
    """
    int8_names = sorted(name for name in sha256s if name.startswith(INT8_PREFIX))
    if not int8_names:
        return sha256s[WEIGHTS]
    return hashlib.sha256("".join(f"{name} {sha256s[name]}\n" for name in (WEIGHTS, *int8_names)).encode()).hexdigest()
