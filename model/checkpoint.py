"""Checkpoint format: writes and reads folders of weights, spec, class map and progress, verified by sha256.

A folder holds model.safetensors, spec.json, categories.json, progress.json, in training also training_state.pt, after
`maskfleet quantize` also int8-*.xml and int8-*.bin (OpenVINO's files of each dense part, for mode int8), and
checkpoint.json, the marker, with the format's version and each file's size and sha256. The marker is written last. A
folder without it is no checkpoint; a folder with it never changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from model.categories import Category, check_categories
from model.checkpoint_folder import (
    CHECKPOINT_MARKER,
    INT8_PREFIX,
    WEIGHTS,
    CheckpointError,
    identity_of,
    is_checkpoint,
)
from model.network import MaskRCNN, build_model
from model.spec import ModelSpec

FORMAT_VERSION = 1
Progress = Mapping[str, float | str]
"""How far a training was, by name (step, num_seen ...), where published weights came from, how it was quantised."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from its folder.

    Attributes:
        sha256: Tells it from others, see `identity_of`.
        int8: What mode int8 computes with: the content of OpenVINO's files by name ("maps.xml", "maps.bin", ...); empty
            where it was not quantised.
    """

    spec: ModelSpec
    categories: tuple[Category, ...]
    progress: Progress
    sha256: str
    state_dict: dict[str, Tensor]
    training_state: dict[str, Any] | None
    int8: Mapping[str, bytes] = field(default_factory=dict)

    def build(self) -> MaskRCNN:
        """The network with these weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The weights do not belong to the spec.
        """
        model = build_model(self.spec)
        try:
            model.load_state_dict(self.state_dict)
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit their spec: {error}") from error
        return model.eval()


def new_checkpoint(
    model: nn.Module, spec: ModelSpec, categories: Sequence[Category], *, progress: Progress
) -> Checkpoint:
    """The checkpoint of a network that has not been written to a folder; its sha256 is that of the file it would have.

    Raises:
        ValueError: The class map does not fit the spec.
    """
    check_categories(categories, spec.num_classes)
    state_dict = _plain_state_dict(model)
    sha256 = hashlib.sha256(safetensors.torch.save(state_dict)).hexdigest()
    return Checkpoint(spec, tuple(categories), progress, sha256, state_dict, None)


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module,
    spec: ModelSpec,
    categories: Sequence[Category],
    progress: Progress,
    training_state: dict[str, Any] | None = None,
    int8: Mapping[str, bytes] | None = None,
) -> str:
    """Write a checkpoint and return the sha256 that tells it from others, see `identity_of`.

    Atomic: a reader sees no checkpoint or the whole one. Files of an earlier, interrupted attempt in the same folder
    are overwritten. `training_state` may hold only tensors and plain containers: it is read without unpickling
    objects. `int8` is `Checkpoint.int8`.

    Raises:
        CheckpointError: The folder is a checkpoint already.
        ValueError: The class map does not fit the spec.
    """
    folder = Path(folder)
    if is_checkpoint(folder):
        raise CheckpointError(f"{folder} holds a checkpoint already, and a checkpoint never changes")
    check_categories(categories, spec.num_classes)
    files = {
        WEIGHTS: safetensors.torch.save(_plain_state_dict(model)),
        "spec.json": _to_json(spec.to_dict()),
        "categories.json": _to_json([dataclasses.asdict(category) for category in categories]),
        "progress.json": _to_json(progress),
        **{f"{INT8_PREFIX}{name}": data for name, data in (int8 or {}).items()},
    }
    if training_state is not None:
        buffer = io.BytesIO()
        torch.save(training_state, buffer)
        files["training_state.pt"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    sha256s = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        _write(folder / name, data)
    listing = {name: {"bytes": len(data), "sha256": sha256s[name]} for name, data in files.items()}
    _write(folder / CHECKPOINT_MARKER, _to_json({"format_version": FORMAT_VERSION, "files": listing}))
    return identity_of(sha256s)


def load_checkpoint(folder: str | os.PathLike[str], *, with_training_state: bool = True) -> Checkpoint:
    """Read a checkpoint, checking every file that is read against its recorded size and sha256.

    Args:
        folder: The checkpoint's folder.
        with_training_state: Whether the training's state is read, twice as large as the weights; else it is None.

    Raises:
        CheckpointError: No marker, a missing, changed or unreadable file, or another format version.
    """
    folder = Path(folder)
    listing = _read_marker(folder)
    if not with_training_state:
        listing.pop("training_state.pt", None)
    files = {name: _read(folder, name, *size_and_hash) for name, size_and_hash in listing.items()}
    missing = sorted({WEIGHTS, "spec.json", "categories.json", "progress.json"} - set(files))
    if missing:
        raise CheckpointError(f"{folder}: {CHECKPOINT_MARKER} does not list {missing[0]}")
    name = ""  # of the file that is being parsed
    try:
        name = "spec.json"
        spec = ModelSpec.from_dict(json.loads(files[name]))
        name = "categories.json"
        categories = tuple(Category(**values) for values in json.loads(files[name]))
        check_categories(categories, spec.num_classes)
        name = "progress.json"
        progress = json.loads(files[name])
        name = WEIGHTS
        state_dict = safetensors.torch.load(files[name])
        name = "training_state.pt"
        training_state = None
        if name in files:
            training_state = torch.load(io.BytesIO(files[name]), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot read {name}: {error}") from error
    sha256 = identity_of({name: sha256 for name, (_, sha256) in listing.items()})
    int8 = {name.removeprefix(INT8_PREFIX): data for name, data in files.items() if name.startswith(INT8_PREFIX)}
    return Checkpoint(spec, categories, progress, sha256, state_dict, training_state, int8)


def _plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _read_marker(folder: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and sha256 of each file that the marker lists."""
    if not is_checkpoint(folder):
        raise CheckpointError(f"{folder} is no complete checkpoint: {CHECKPOINT_MARKER} is missing")
    try:
        marker = json.loads((folder / CHECKPOINT_MARKER).read_bytes())
        version = marker["format_version"]
        listing = {name: (entry["bytes"], entry["sha256"]) for name, entry in marker["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: cannot read {CHECKPOINT_MARKER}: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: {CHECKPOINT_MARKER} has format_version {version!r}; allowed is {FORMAT_VERSION}"
        )
    return listing


def _read(folder: Path, name: str, num_bytes: int, sha256: str) -> bytes:
    if Path(name).name != name:
        raise CheckpointError(f"{folder}: {CHECKPOINT_MARKER} lists {name!r}, which is no file of the folder")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot read {name}: {error.strerror}") from error
    if len(data) != num_bytes:
        raise CheckpointError(f"{folder}: {name} has {len(data)} bytes; {num_bytes} were written")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{folder}: the sha256 of {name} is not the one recorded when it was written")
    return data


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically (temporary name, rename) and durably (fsync of file and folder)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
