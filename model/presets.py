"""Presets: specs of torchvision's and detectron2's published networks, with the settings that their weights need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.spec import ModelSpec

PUBLISHED = ("coco", "imagenet")  # names of published weights; any other value is a path
TORCHVISION_PREFIX = "torchvision:"  # of a name of torchvision's weights

_KEYPOINTS = {"num_classes": 1, "num_keypoints": 17, "mask_head": "none"}
_FIRST_WEIGHTS = {"num_classes": 90, "norm_eps": 0.0, "frozen_stages": 2}  # what torchvision's COCO weights V1 need
_TORCHVISION: dict[str, Mapping[str, object]] = {
    "maskrcnn_resnet50_fpn": _FIRST_WEIGHTS,
    "maskrcnn_resnet50_fpn_v2": {
        "num_classes": 90,
        "frozen_stages": 2,
        "norm": "batch",
        "head_norm": "batch",
        "rpn_convs": 2,
        "box_head_convs": 4,
        "box_head_fcs": 1,
    },
    "keypointrcnn_resnet50_fpn": {**_FIRST_WEIGHTS, **_KEYPOINTS},
}
_DETECTRON2: Mapping[str, object] = {
    "num_classes": 80,
    "channel_order": "bgr",
    "image_mean": (103.53 / 255, 116.28 / 255, 123.675 / 255),
    "image_std": (1 / 255, 1 / 255, 1 / 255),
    "norm_eps": 1e-5,
    "frozen_stages": 2,
    "stride_in_1x1": True,
    "anchor_style": "detectron2",
    "rpn_post_nms_train": 1000,
    "roi_half_pixel": True,
    "roi_sampling_ratio": 0,
    "box_loss": "l1",
    "rpn_box_loss": "l1",
}
_ONE_MAP = {
    "anchor_sizes": ((32, 64, 128, 256, 512),),
    "rpn_pre_nms_train": 12000,
    "rpn_pre_nms_test": 6000,
    "rpn_post_nms_train": 2000,
}
_C4 = {**_ONE_MAP, "neck": "c4", "mask_head_channels": (), "mask_output_size": 14}
_DC5 = {**_ONE_MAP, "neck": "dc5"}
_X101 = {
    "backbone": "resnext101_32x8d",
    "stride_in_1x1": False,
    "image_std": (57.375 / 255, 57.12 / 255, 58.395 / 255),
}
# Names of detectron2's model zoo without their training schedule (_1x, _3x).
_ZOO: dict[str, Mapping[str, object]] = {
    "mask_rcnn_R_50_FPN": {},
    "mask_rcnn_R_101_FPN": {"backbone": "resnet101"},
    "mask_rcnn_X_101_32x8d_FPN": _X101,
    "mask_rcnn_R_50_C4": _C4,
    "mask_rcnn_R_101_C4": {**_C4, "backbone": "resnet101"},
    "mask_rcnn_R_50_DC5": _DC5,
    "mask_rcnn_R_101_DC5": {**_DC5, "backbone": "resnet101"},
    "keypoint_rcnn_R_50_FPN": _KEYPOINTS,
    "keypoint_rcnn_R_101_FPN": {**_KEYPOINTS, "backbone": "resnet101"},
    "keypoint_rcnn_X_101_32x8d_FPN": {**_KEYPOINTS, **_X101},
}
TORCHVISION_NAMES = tuple(_TORCHVISION)
DETECTRON2_NAMES = tuple(_ZOO)


def preset(name: str, **changes: Any) -> ModelSpec:
    """The network that torchvision (``maskrcnn_resnet50_fpn_v2``) or detectron2's model zoo publishes by this name.

    Args:
        name: Names of the zoo may end in their training schedule, as in ``mask_rcnn_R_50_FPN_3x``.
        changes: Other values of some of its fields.

    Raises:
        ValueError: There is no such network.
    """
    if name in _TORCHVISION:
        values = _TORCHVISION[name]
    elif (zoo_name := name.removesuffix("_1x").removesuffix("_3x")) in _ZOO:
        values = {**_DETECTRON2, **_ZOO[zoo_name]}
    else:
        names = ", ".join([*_TORCHVISION, *_ZOO])
        raise ValueError(f"no published network {name!r}; allowed are {names} (and _1x, _3x)")
    return ModelSpec().replace(**{**values, **changes})
