"""SAM's weights: finds them in a folder or on the Hugging Face hub, hashes what counts of them, loads the network.

SAM (Kirillov et al., Segment Anything, 2023) and SAM 2 (Ravi et al., SAM 2, 2024) come from the package transformers,
the extra `maskfleet[transformers]`. It, and torch, are imported where they are used only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint_folder import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
KINDS = {"sam": "sam", "sam2": "sam2", "sam2_video": "sam2"}
"""What `model_type` of a config.json may be, and the network that it means. SAM 2 is published with its memory for
videos, which is left out."""

_LARGEST_VALUE = 20.0  # of a prepared image; white is 2.6 with SAM's own mean and standard deviation
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_NEEDS_EXTRA = "the package transformers is not installed here; pip install 'maskfleet[transformers]'"


@dataclass(frozen=True)
class SamWeights:
    """SAM's weights on this machine.

    Attributes:
        folder: holds config.json, the weights as safetensors, and how images are prepared, where that is said.
        revision: the commit of the hub that the folder is a copy of; "" of a folder of the user's own.
        kind: "sam" or "sam2".
        sha256: over the names and hashes of all files that count.
    """

    folder: Path
    revision: str
    kind: str
    sha256: str


def is_hub_name(model: str) -> bool:
    """Whether OWNER/NAME is meant, a model of the Hugging Face hub: it looks so, and there is no such folder."""
    return _HUB_NAME.fullmatch(model) is not None and not os.path.exists(model)


def find_sam(model: str, revision: str | None = None, sha256: str | None = None) -> SamWeights:
    """The weights that a name or a folder stands for; by a name they are fetched once into the hub's cache.

    Args:
        model: a folder, as `save_pretrained` of transformers writes it; or OWNER/NAME on the Hugging Face hub.
        revision: the commit, tag or branch of a name; None is the newest commit. Not used with a folder.
        sha256: the hash of `revision`, where it is known: weights of it in the cache are taken without asking the hub.

    Raises:
        CheckpointError: the extra is not installed, there are no such weights, they cannot be fetched, are of another
            network, or pickled.
    """
    if not is_hub_name(model):
        return _weights_in(Path(model))
    if sha256 is not None:
        with suppress(CheckpointError):  # not in the cache, or not whole
            folder = _fetch(model, revision, only_cached=True)
            if (weights := _weights_in(folder, folder.name)).sha256 == sha256:
                return weights
    folder = _fetch(model, revision)
    return _weights_in(folder, folder.name)  # the cache names its folders by the commit


def load_sam(weights: SamWeights) -> tuple[Any, Any]:
    """SAM's network of transformers in float32 on the CPU, for prediction, and the processor of its images.

    Raises:
        CheckpointError: the extra is not installed; the weights cannot be read, tensors are missing or of another
            shape, or images would be prepared at another size than the network takes.
    """
    import torch

    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(_NEEDS_EXTRA) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    network_class = transformers.SamModel if weights.kind == "sam" else transformers.Sam2Model
    processor_class = transformers.SamImageProcessor if weights.kind == "sam" else transformers.Sam2ImageProcessor
    try:
        network, report = network_class.from_pretrained(
            weights.folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
        sides = network.config.prompt_encoder_config.image_size
        height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
        square = {"height": height, "width": width}
        if any((weights.folder / name).exists() for name in PROCESSORS):
            processor = processor_class.from_pretrained(weights.folder, local_files_only=True)
        elif weights.kind == "sam":
            processor = processor_class(size={"longest_edge": max(height, width)}, pad_size=square)
        else:
            processor = processor_class(size=square)
        broken = _broken(network, report) or _unfit(network, processor, (height, width))
    except Exception as error:  # of any kind: transformers checks files and configurations in many places
        text = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{weights.folder} cannot be loaded: {type(error).__name__}: {text}") from error
    if broken:
        raise CheckpointError(f"{weights.folder}{broken}")
    return network.eval().requires_grad_(False), processor


def _broken(network: Any, report: Mapping[str, Collection[Any]]) -> str:
    """What is said of a network whose tensors are not those that its configuration wants; "" of a whole one."""
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing:
        return (
            f": {len(missing)} tensors of the network are missing or of another shape than {CONFIG} says, {missing[0]} "
            "is one of them"
        )
    parts = "|".join(name for name, _ in network.named_children())
    layers = sorted(key for key in report["unexpected_keys"] if re.match(rf"({parts})\..*\b(layers|blocks)\.\d", key))
    return f" has more layers than {CONFIG} says, such as {layers[0]}" if layers else ""


def _unfit(network: Any, processor: Any, size: tuple[int, int]) -> str:
    """What is said where images are not prepared as the network takes them; "" where they are.

    Raises:
        Exception: an image cannot be prepared, or the network's parts do not fit together.
    """
    import torch

    height, width = size
    image = torch.full((3, 2, 4), 255, dtype=torch.uint8)
    inputs = processor(images=[image], input_data_format="channels_first", return_tensors="pt")
    pixels = inputs["pixel_values"]
    if pixels.shape != (1, 3, height, width):
        sides = " x ".join(str(side) for side in pixels.shape[2:])
        return f" prepares images of {sides} px for a network of {height} x {width} px"
    if not torch.isfinite(pixels).all():
        return " prepares images of values that are not finite"
    if (largest := float(pixels.abs().max())) > _LARGEST_VALUE:
        return f" prepares images of values up to {largest:.0f} for a network that takes some -2 to 3 (do_rescale)"
    resized = [int(side) for side in inputs.get("reshaped_input_sizes", [[height, width]])[0]]
    if max(resized) != max(height, width):
        return f" resizes images to {max(resized)} px for a network of {height} x {width} px"
    with torch.device("meta"), torch.inference_mode():  # shapes alone: it costs no memory, and not a second
        hollow = type(network)(network.config)
        embeddings = hollow.get_image_embeddings(torch.empty(1, 3, height, width))
        hollow(image_embeddings=embeddings, input_boxes=torch.empty(1, 1, 4), multimask_output=False)
    return ""


def _weights_in(folder: Path, commit: str = "") -> SamWeights:
    try:
        if not folder.is_dir():
            raise CheckpointError(
                f"{str(folder)!r} is not a folder; allowed is a folder of SAM's weights, or the name of a model on the "
                "Hugging Face hub, such as facebook/sam-vit-base"
            )
        return SamWeights(folder, commit, _kind(folder), _hash(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _fetch(name: str, revision: str | None, *, only_cached: bool = False) -> Path:
    """The folder of the hub's cache that holds the files of a model that count."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(_NEEDS_EXTRA) from error
    patterns = [CONFIG, *PROCESSORS, WEIGHTS, INDEX, "model-*.safetensors"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=only_cached))
    except Exception as error:  # of the hub, of its HTTP client, or of the disk
        text = " ".join(str(error).split())[:500]
        of = "" if revision is None else f" (revision {revision})"
        raise CheckpointError(
            f"{name}{of} is no folder here, and cannot be fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {text}"
        ) from error


def _kind(folder: Path) -> str:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {CONFIG}; allowed is a folder as SamModel.save_pretrained writes it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no configuration of a network: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path} is no configuration of a network: it has no model_type")
    if config["model_type"] not in list(KINDS):  # it may be anything, also a list
        raise CheckpointError(
            f"{folder} holds a network of the type {config['model_type']!r}; allowed are {', '.join(KINDS)}"
        )
    return KINDS[config["model_type"]]


def _hash(folder: Path) -> str:
    """The SHA-256 over the names and hashes of a folder's files that count."""
    names = {path.name for path in folder.iterdir()}  # a link to nothing is there, too, and cannot be read
    files = [folder / name for name in (CONFIG, *PROCESSORS) if name in names]
    if WEIGHTS in names:
        files.append(folder / WEIGHTS)
    elif INDEX in names:
        files += [folder / INDEX, *(folder / name for name in _parts(folder / INDEX))]
    else:
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        found = f"it has {pickled[0]}, which may run code as it is read" if pickled else "it has none"
        raise CheckpointError(f"{folder}: allowed are weights in {WEIGHTS}; {found}")
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _parts(index: Path) -> list[str]:
    """The names of the files that weights are split into, sorted."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not names:
            raise ValueError("names no file")
        if not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names):
            raise ValueError(f"names other files than safetensors beside it: {names}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of weights: {error!r}") from error
    return names
