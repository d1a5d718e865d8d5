"""Weight loading: torchvision's published weights, detectron2's zoo, or any state dict file, into a network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from model.backbones.body import Body, first_conv
from model.presets import PUBLISHED
from model.spec import ModelSpec
from model.vision import detection, models
from model.weights.detectron2 import from_detectron2, is_detectron2
from model.weights.unpickler import load_plain_pickle

# Names in torchvision's files that its modules have changed since.
_OLD_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
)
_BOX_PREDICTOR, _MASK_PREDICTOR = "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors a network got from some weights, and which not.

    Attributes:
        source: The weights as requested: "coco", "imagenet" or a path.
        loaded: Names of the network's tensors that were set.
        left_out: Name in the file -> why it was not used.
        fresh: Names of the network's tensors that the file does not have, except counters of batch norm.
        notes: Sentences on conversions.
    """

    source: str
    loaded: tuple[str, ...]
    left_out: dict[str, str]
    fresh: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded", *self.notes]
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out.items()]
        if self.fresh:
            lines.append(f"still random: {', '.join(self.fresh)}")
        return "\n".join(lines)


def load_weights(model: nn.Module, spec: ModelSpec, weights: str) -> WeightsReport:
    """Load into a network of `spec` those tensors of some weights that fit by name and shape.

    Args:
        model: Changed in place.
        spec: Of the network.
        weights: "coco" (torchvision's Mask or Keypoint R-CNN of this spec), "imagenet" (torchvision's classifier with
            this backbone), or the path of a file: a torchvision state dict (.pth), safetensors, a detectron2 zoo pickle
            (.pkl), a classifier's state dict; or a checkpoint folder.

    Raises:
        ValueError: There are no such weights, they cannot be fetched or read, or no tensor of them fits.
    """
    return load_state_dict(model, spec, find_state_dict(spec, weights), source=weights)


def load_state_dict(
    model: nn.Module, spec: ModelSpec, state_dict: Mapping[str, Tensor], *, source: str
) -> WeightsReport:
    """Load the tensors of a file, by their names in it, as `load_weights` does.

    Raises:
        ValueError: No tensor of them fits.
    """
    notes: list[str] = []
    report = load_matching(model, to_our_names(model, dict(state_dict), spec, notes), source=source, notes=notes)
    if not report.loaded:
        raise ValueError(f"weights={source!r}: nothing in them fits this network (backbone={spec.backbone!r})")
    return report


def find_state_dict(spec: ModelSpec, weights: str) -> dict[str, Tensor]:
    """The tensors of some weights (see `load_weights`) by their names in the file.

    Raises:
        ValueError: There are no such weights, or they cannot be fetched or read.
    """
    return dict(_published(spec, weights) if weights in PUBLISHED else read_state_dict(weights))


def load_matching(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, notes: list[str] | None = None
) -> WeightsReport:
    """Set each tensor of the network that the state dict has by the same name and of the same shape."""
    model_tensors = model.state_dict()
    fitting, left_out = {}, {}
    for name, tensor in state_dict.items():
        if name not in model_tensors:
            # Frozen batch norm has no counter and needs none.
            if not name.endswith("num_batches_tracked"):
                left_out[name] = "no such part in this network"
        elif model_tensors[name].shape != tensor.shape:
            left_out[name] = f"{list(tensor.shape)} in the file, {list(model_tensors[name].shape)} in this network"
        else:
            fitting[name] = tensor
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in model_tensors if name not in fitting and not name.endswith("num_batches_tracked")]
    return WeightsReport(source, tuple(fitting), left_out, tuple(fresh), tuple(notes or ()))


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file by name; no code in it is run.

    Raises:
        ValueError: There is no such file, or it holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"weights={str(path)!r}: no such file; allowed are 'coco', 'imagenet' or a file of weights")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        elif path.suffix == ".pkl":
            content = load_plain_pickle(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights={str(path)!r} cannot be read: {error}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"weights={str(path)!r}: holds {type(content).__name__}, not a state dict")
    tensors = {
        str(name).removeprefix("module."): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
    }
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _published(spec: ModelSpec, weights: str) -> dict[str, Tensor]:
    entry = _coco_entry(spec) if weights == "coco" else _imagenet_entry(spec)
    name = Path(urlsplit(entry.url).path).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(
            entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except OSError as error:
        raise ValueError(
            f"weights={weights!r}: {name} cannot be fetched ({error}); put that file into {folder}, "
            f"or give the path of a file of weights instead"
        ) from error


def _coco_entry(spec: ModelSpec) -> Any:
    is_published = spec.backbone == "resnet50" and spec.neck == "fpn" and not spec.stride_in_1x1
    if not is_published:
        raise ValueError(
            f"weights='coco': torchvision has them for backbone='resnet50' with neck='fpn' alone, "
            f"not for backbone={spec.backbone!r}, neck={spec.neck!r}; "
            f"use 'imagenet' or a file of detectron2's zoo"
        )
    if spec.box_head_convs == 4 and spec.rpn_convs == 2:
        return detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    if spec.norm == "frozen_batch" and spec.norm_eps != 0:
        raise ValueError(
            f"norm_eps={spec.norm_eps}: torchvision's COCO weights were made with norm_eps=0, allowed is 0"
        )
    if spec.mask_head == "none":
        return detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
    return detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1


def _imagenet_entry(spec: ModelSpec) -> Any:
    try:
        return models.get_model_weights(spec.backbone)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise ValueError(
            f"weights='imagenet': torchvision has none for backbone={spec.backbone!r}; give the path of a file"
        ) from None


def to_our_names(
    model: nn.Module, state_dict: dict[str, Tensor], spec: ModelSpec, notes: list[str]
) -> dict[str, Tensor]:
    """The tensors of a file by this network's names, in its order of classes and anchors; `notes` gets sentences."""
    if is_detectron2(state_dict):
        state_dict = from_detectron2(state_dict, spec)
        if spec.channel_order != "bgr" or spec.anchor_style != "detectron2":
            notes.append("the file is detectron2's: its weights want channel_order='bgr', anchor_style='detectron2'")
    elif any(name.startswith("roi_heads.") for name in state_dict):
        state_dict = {_renamed(name): tensor for name, tensor in state_dict.items()}
    else:
        state_dict = {_body_name(model, name): tensor for name, tensor in state_dict.items()}
    _keep_used_coco_classes(state_dict, spec, notes)
    _fit_stem(model, state_dict, spec, notes)
    return state_dict


def _renamed(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _body_name(model: nn.Module, name: str) -> str:
    """The network's name of a classifier's tensor."""
    name = name.removeprefix("features.")
    res5 = f"roi_heads.res5.{name}"
    return res5 if res5 in model.state_dict() else f"backbone.body.{name}"


def _keep_used_coco_classes(state_dict: dict[str, Tensor], spec: ModelSpec, notes: list[str]) -> None:
    """Drop the rows of unused ids from COCO weights in a network of 80 classes.

    torchvision has a row for background and one for each COCO id from 1 to 90, of which ten belong to no class.
    """
    scores = state_dict.get(f"{_BOX_PREDICTOR}cls_score.weight")
    if scores is None or len(scores) != 91 or spec.num_classes != 80:
        return
    names = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    used = torch.tensor([index for index, name in enumerate(names) if name != "N/A"])
    for name, tensor in state_dict.items():
        if name.startswith((f"{_BOX_PREDICTOR}cls_score.", _MASK_PREDICTOR)) and len(tensor) == 91:
            state_dict[name] = tensor[used]
        elif name.startswith(f"{_BOX_PREDICTOR}bbox_pred."):
            state_dict[name] = tensor.reshape(91, 4, *tensor.shape[1:])[used].flatten(0, 1)
    notes.append("of the 91 rows for COCO's ids, the 80 that have a class were taken, in the order of ids")


def _fit_stem(model: nn.Module, state_dict: dict[str, Tensor], spec: ModelSpec, notes: list[str]) -> None:
    body = getattr(model.backbone, "body", None)
    if not isinstance(body, Body):
        return
    conv_name, conv = first_conv(body)
    name = f"backbone.body.{conv_name}.weight"
    loaded = state_dict.get(name)
    if loaded is None or loaded.shape[1] == conv.in_channels:
        return
    if spec.stem_init == "fresh":
        del state_dict[name]
        notes.append(f"{name} stays random: stem_init='fresh'")
        return
    state_dict[name] = inflate(loaded, conv.in_channels)
    notes.append(f"{name} was inflated from {loaded.shape[1]} to {conv.in_channels} channels")


def inflate(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weight [O, I, h, w] for `in_channels` channels: repeated cyclically, scaled by I / `in_channels`.

    Where I divides `in_channels`, an image whose channels are all equal gives the same output as before.
    """
    channels = torch.arange(in_channels) % weight.shape[1]
    return weight[:, channels] * (weight.shape[1] / in_channels)
