"""Table of parameters and GFLOPs of the supported networks, as Markdown (``python -m benchmarks.complexity``)."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.dense_parts import to_feature_maps
from model.heads.roi_pooler import RoIPooler
from model.network import MaskRCNN, build_model
from model.presets import preset
from model.spec import ModelSpec

IMAGE_SIDE_PX = 800
_FPN_BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext50_32x8d", "resnext50_64x4d"),
    *("resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d", "mobilenet_v3_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "vgg16"),
)


def members() -> dict[str, ModelSpec]:
    """The specs of the table's rows by name: widths as in the paper, 80 classes."""
    plain = ModelSpec(num_classes=80)
    return {
        "tiny": ModelSpec.tiny(80),
        **{f"{name} FPN": plain.replace(backbone=name) for name in _FPN_BACKBONES},
        "resnet50 FPN, V2 recipe": preset("maskrcnn_resnet50_fpn_v2", num_classes=80),
        "resnet50 C4": preset("mask_rcnn_R_50_C4"),
        "resnet101 C4": preset("mask_rcnn_R_101_C4"),
        "resnet50 C5 (stride 32)": plain.replace(
            neck="c5", anchor_sizes=((32, 64, 128, 256, 512),), rpn_pre_nms_test=6000
        ),
        "resnet50 DC5 (stride 16)": preset("mask_rcnn_R_50_DC5"),
        "resnet50 FPN, squeeze-excite": plain.replace(attention="squeeze_excite"),
        "resnet50 FPN, 56 px masks": plain.replace(mask_output_size=56),
        "resnet50 FPN, five-convolution masks": plain.replace(
            mask_head="conv5", mask_head_channels=(256, 256, 256, 256, 256)
        ),
        "resnet50 FPN, MLP masks": plain.replace(mask_head="mlp", mask_head_channels=(1024, 1024)),
        "resnet50 FPN, keypoints": preset("keypointrcnn_resnet50_fpn"),
        "resnet50 FPN, masks and keypoints": plain.replace(num_classes=1, num_keypoints=17),
    }


def num_parameters(model: nn.Module) -> int:
    """Number of weights of a network: its parameters, and the scales and shifts of frozen batch norm."""
    frozen = [
        tensor
        for name, tensor in model.named_buffers()
        if name.endswith((".weight", ".bias")) and "running" not in name
    ]
    return sum(tensor.numel() for tensor in [*model.parameters(), *frozen])


def num_flops(model: MaskRCNN, spec: ModelSpec) -> int:
    """Floating-point operations of one prediction at 800 x 800 px; a multiply-add counts as two.

    Counted are the convolutions and matrix products of the backbone, the RPN, the box head on the largest number of
    proposals, and the mask and keypoint heads on the largest number of detections. The network must be on the meta
    device: only shapes are computed.
    """
    heads = model.roi_heads
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = to_feature_maps(
            model.backbone(torch.empty(1, spec.in_channels, IMAGE_SIDE_PX, IMAGE_SIDE_PX, device="meta"))
        )
        model.rpn.head(list(maps.values()))
        channels = maps["0"].shape[1]

        def rois(count: int, pooler: RoIPooler) -> torch.Tensor:
            return torch.empty(count, channels, pooler.output_size, pooler.output_size, device="meta")

        heads.box_predictor(heads.box_head(heads.res5(rois(spec.rpn_post_nms_test, heads.box_roi_pool))))
        if heads.has_mask():
            heads.mask_predictor(heads.mask_head(heads.res5(rois(spec.max_detections, heads.mask_roi_pool))))
        if heads.has_keypoint():
            heads.keypoint_predictor(heads.keypoint_head(rois(spec.max_detections, heads.keypoint_roi_pool)))
    return counter.get_total_flops()


def row(name: str, spec: ModelSpec) -> str:
    """One line of the table: name, parameters in millions, GFLOPs."""
    with torch.device("meta"):
        model = build_model(spec).eval()
    return f"| {name} | {num_parameters(model) / 1e6:.1f} | {num_flops(model, spec) / 1e9:.0f} |"


def table() -> str:
    """The whole table as Markdown, a row for each of `members`."""
    head = [f"| network | parameters (M) | GFLOPs at {IMAGE_SIDE_PX} px |", "|---|---:|---:|"]
    return "\n".join([*head, *(row(name, spec) for name, spec in members().items())])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
