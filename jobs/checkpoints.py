"""Which checkpoint a URI means, and how checkpoints and weights in buckets become files of this machine."""

from __future__ import annotations

from jobs.training.output import TrainingOutput
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError
from model.presets import PUBLISHED
from pipeline.storage.cache import local_file, local_folder
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import is_local


def find_checkpoint(uri: str) -> str:
    """The URI of the checkpoint folder that a URI names.

    Args:
        uri: a checkpoint folder, or a training output with `checkpoints/step-*` in it (then its newest complete one).

    Raises:
        CheckpointError: nothing there, or nothing complete; the message says what was looked for.
    """
    output = TrainingOutput(uri)
    try:
        if output.storage.exists(CHECKPOINT_MARKER):
            return output.uri
        steps = output.steps()
    except OSError as error:
        raise CheckpointError(f"{output.uri} cannot be read: {error}") from error
    if steps:
        return output.checkpoint_uri(steps[-1])
    there = "does not exist" if output.is_absent() else "holds no checkpoint"
    raise CheckpointError(
        f"{output.uri} {there}; give a checkpoint folder (it has a {CHECKPOINT_MARKER}) or a training output"
    )


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint that a URI names, see `find_checkpoint`; one in a bucket is fetched to this machine once.

    Raises:
        CheckpointError: no readable checkpoint there.
    """
    found = find_checkpoint(uri)
    folder = local_folder(found, CHECKPOINT_MARKER)
    try:
        return load_checkpoint(folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), found)) from error


def local_weights(weights: str | None) -> str | None:
    """`weights` as `model.weights` takes them: what lies in a bucket, a file or a checkpoint folder, as a path here.

    Raises:
        StorageError: nothing of that name, or it cannot be read.
    """
    if weights is None or weights in PUBLISHED or is_local(weights):
        return weights
    if open_storage(weights).exists(CHECKPOINT_MARKER):
        return str(local_folder(weights, CHECKPOINT_MARKER))
    return str(local_file(weights))
