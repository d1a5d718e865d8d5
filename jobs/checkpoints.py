"""Checkpoints and weights by URI: finds the newest complete checkpoint, and fetches what lies in a bucket."""

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
        uri: a checkpoint folder; or a training output, which stands for its newest complete `checkpoints/step-*`.

    Raises:
        CheckpointError: the folder does not exist, cannot be read, or holds no complete checkpoint.
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
    fault = "does not exist" if output.is_absent() else "holds no checkpoint"
    raise CheckpointError(
        f"{output.uri} {fault}; give a checkpoint folder (it has a {CHECKPOINT_MARKER}) or a training output"
    )


def open_checkpoint(uri: str) -> Checkpoint:
    """Loads the checkpoint that a URI names (see `find_checkpoint`); one in a bucket is first fetched into the cache.

    Raises:
        CheckpointError: no complete checkpoint there, or a damaged one. The message names its URI, not the cached copy.
    """
    checkpoint_uri = find_checkpoint(uri)
    folder = local_folder(checkpoint_uri, CHECKPOINT_MARKER)
    try:
        return load_checkpoint(folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), checkpoint_uri)) from error


def local_weights(weights: str | None) -> str | None:
    """Weights in the form that the model layer takes: a preset's name, a local path, or None.

    A file or checkpoint folder in a bucket is fetched into the cache, and its local path is returned. Everything else
    is returned as given.

    Raises:
        StorageError: the bucket holds nothing of that name, or it cannot be read.
    """
    if weights is None or weights in PUBLISHED or is_local(weights):
        return weights
    if open_storage(weights).exists(CHECKPOINT_MARKER):
        return str(local_folder(weights, CHECKPOINT_MARKER))
    return str(local_file(weights))
