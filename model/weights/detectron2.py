"""detectron2 state dicts: converts tensor names and the order of classes and anchors to those of this network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.spec import ModelSpec

# Constants that detectron2 stores with its weights; here they are in the spec.
_CONSTANTS = re.compile(r"^pixel_(mean|std)$|anchor_generator\.")

_STAGE = r"(?:backbone(?:\.bottom_up)?|(roi_heads))\.res(\d)\.(\d+)\."
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone(?:\.bottom_up)?\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"^backbone(?:\.bottom_up)?\.stem\.conv1\.", "backbone.body.conv1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (_STAGE + r"shortcut\.norm\.", lambda m: _stage(m) + "downsample.1."),
    (_STAGE + r"shortcut\.", lambda m: _stage(m) + "downsample.0."),
    (_STAGE + r"conv(\d)\.norm\.", lambda m: f"{_stage(m)}bn{m[4]}."),
    (_STAGE + r"conv(\d)\.", lambda m: f"{_stage(m)}conv{m[4]}."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
    (r"^roi_heads\.keypoint_head\.conv_fcn(\d)\.", lambda m: f"roi_heads.keypoint_head.{2 * int(m[1]) - 2}."),
    (r"^roi_heads\.keypoint_head\.score_lowres\.", "roi_heads.keypoint_predictor.kps_score_lowres."),
)


def is_detectron2(names: Mapping[str, object]) -> bool:
    """Whether the names of a state dict are those of a detectron2 R-CNN."""
    return any(name.startswith("proposal_generator.") for name in names)


def from_detectron2(state_dict: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """A detectron2 R-CNN's weights with the names and the order of classes and anchors of `model.network.MaskRCNN`.

    Background moves from last to first, and gets rows of zeros where detectron2 has none. Anchors at one position are
    reordered from size by size to ratio by ratio. Unknown names are kept.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if _CONSTANTS.search(name):
            continue
        ours = rename(name)
        converted[ours] = _reorder(ours, tensor, spec)
    return converted


def rename(name: str) -> str:
    """Our name of the tensor that detectron2 calls `name`; an unknown name is returned as it is."""
    for pattern, replacement in _RENAMES:
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def _stage(match: re.Match[str]) -> str:
    """Our name of the block that a match of `_STAGE` names: res2 is layer1; C4's res5 belongs to the RoI heads."""
    owner = "roi_heads.res5" if match[1] else "backbone.body"
    return f"{owner}.layer{int(match[2]) - 1}.{match[3]}."


def _reorder(name: str, tensor: Tensor, spec: ModelSpec) -> Tensor:
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return torch.cat([tensor[-1:], tensor[:-1]])
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return torch.cat([torch.zeros_like(tensor[:4]), tensor])
    if name.startswith("roi_heads.mask_predictor.mask_fcn_logits.") and not spec.mask_class_agnostic:
        return torch.cat([torch.zeros_like(tensor[:1]), tensor])
    if name.startswith(("rpn.head.cls_logits.", "rpn.head.bbox_pred.")):
        sizes, ratios = len(spec.anchor_sizes[0]), len(spec.anchor_ratios)
        if len(tensor) % (sizes * ratios) == 0:
            by_anchor = tensor.reshape(sizes, ratios, -1, *tensor.shape[1:])
            return by_anchor.transpose(0, 1).reshape(tensor.shape)
    return tensor
