"""Checkpoints and weights by URI: a folder, the newest of a training, published weights; fetched from buckets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from jobs.training.output import TrainingOutput
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError, identity_of
from model.presets import PUBLISHED
from model.weights.published import checkpoint_from_weights, is_published_name, is_weights_file
from pipeline.manifest import sha256_of
from pipeline.storage.base import StorageSettings
from pipeline.storage.cache import cached_folder, local_file, local_folder
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import is_local, local_path, plain_uri


def is_weights(uri: str) -> bool:
    """Whether a checkpoint is given as published weights, by name or as a file, instead of as a folder."""
    return is_published_name(uri) or (is_weights_file(uri) and not (is_local(uri) and local_path(uri).is_dir()))


def find_checkpoint(
    uri: str,
    network: str | None = None,
    class_names: Sequence[str] | None = None,
    settings: StorageSettings | None = None,
) -> str:
    """The URI of the checkpoint folder that a URI names.

    Args:
        uri: a checkpoint folder; a training output, which stands for its newest complete `checkpoints/step-*`; or
            published weights ("coco", "torchvision:NAME", a file), which become a checkpoint in this machine's cache.
        network, class_names: for a file of weights, see `model.weights.published.checkpoint_from_weights`.
        settings: for buckets, see `open_storage`.

    Raises:
        CheckpointError: the folder does not exist, cannot be read, or holds no complete checkpoint; weights that
            cannot be fetched or are of no known network.
    """
    if is_weights(uri):
        return str(_convert(uri, network, class_names, settings))
    if network is not None or class_names is not None:
        raise CheckpointError(f"{uri} is a checkpoint, which knows its network and classes; leave out those settings")
    output = TrainingOutput(uri, settings)
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
        f"{output.uri} {fault}; give a checkpoint folder (it has a {CHECKPOINT_MARKER}), a training output, 'coco', "
        "or a file of published weights (.pth, .pkl)"
    )


def open_checkpoint(
    uri: str | os.PathLike[str],
    network: str | None = None,
    class_names: Sequence[str] | None = None,
    settings: StorageSettings | None = None,
) -> Checkpoint:
    """Loads the checkpoint that a URI names, as `find_checkpoint` does; one in a bucket is fetched into the cache.

    The state of its training is left out.

    Raises:
        CheckpointError: no complete checkpoint there, or a damaged one. The message names its URI, not the cached copy.
    """
    uri = os.fspath(uri)
    if is_weights(uri):
        return _from_weights(uri, network, class_names, settings)
    checkpoint_uri = find_checkpoint(uri, network, class_names, settings)
    folder = local_folder(checkpoint_uri, CHECKPOINT_MARKER, settings)
    try:
        return load_checkpoint(folder, with_training_state=False)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), checkpoint_uri)) from error


def place_checkpoint(folder: str, uri: str, storage_settings: StorageSettings | None = None) -> str:
    """Copies a local checkpoint folder below a URI, the marker last, unless it is there already; returns the URI.

    Raises:
        OSError: it cannot be written.
    """
    storage = open_storage(uri, storage_settings)
    if not storage.exists(CHECKPOINT_MARKER):
        paths = sorted(Path(folder).iterdir(), key=lambda path: (path.name == CHECKPOINT_MARKER, path.name))
        for path in paths:
            storage.write_bytes(path.name, path.read_bytes())
    return uri


def _from_weights(
    source: str, network: str | None, class_names: Sequence[str] | None, settings: StorageSettings | None
) -> Checkpoint:
    path = source if is_published_name(source) else str(local_file(source, settings))
    return checkpoint_from_weights(path, network=network, class_names=class_names)


def _convert(
    source: str, network: str | None, class_names: Sequence[str] | None, settings: StorageSettings | None
) -> Path:
    """The cache folder of the checkpoint that published weights are."""
    checkpoint = _from_weights(source, network, class_names, settings)

    def fill(folder: Path) -> None:
        save_checkpoint(
            folder,
            model=checkpoint.build(),
            spec=checkpoint.spec,
            categories=checkpoint.categories,
            progress=checkpoint.progress,
        )

    name = sha256_of(f"{checkpoint.sha256}\n{checkpoint.spec}\n{checkpoint.categories}".encode())
    return cached_folder(name, fill)


def local_weights(weights: str | None, settings: StorageSettings | None = None) -> str | None:
    """Weights in the form that the model layer takes: a preset's name, a local path, or None.

    A file or checkpoint folder in a bucket is fetched into the cache, reached with these settings, and its local path
    is returned; of a file:// URI its path. Everything else is returned as given.

    Raises:
        StorageError: the bucket holds nothing of that name, or it cannot be read.
    """
    if weights is None or weights in PUBLISHED or is_local(weights):
        return weights if weights is None else plain_uri(weights)
    if open_storage(weights, settings).exists(CHECKPOINT_MARKER):
        return str(local_folder(weights, CHECKPOINT_MARKER, settings))
    return str(local_file(weights, settings))


def weights_hash(checkpoint: str, settings: StorageSettings | None = None) -> str:
    """The SHA-256 that tells a checkpoint from others, from its marker. Raises OSError where that cannot be read."""
    marker = json.loads(open_storage(checkpoint, settings).read_bytes(CHECKPOINT_MARKER))
    return identity_of({name: entry["sha256"] for name, entry in marker["files"].items()})
