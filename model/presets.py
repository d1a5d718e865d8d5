"""Presets: specs of torchvision's and detectron2's published networks, with the settings that their weights need."""

from __future__ import annotations

from typing import Any

from model.spec import ModelSpec

PUBLISHED = ("coco", "imagenet")  # names of published weights; any other value is a path
TORCHVISION_PREFIX = "torchvision:"  # of a name of torchvision's weights


def torchvision_v1(num_classes: int = 90, **changes: Any) -> ModelSpec:
    """torchvision's ``maskrcnn_resnet50_fpn`` with the settings that its COCO weights (V1) need."""
    return ModelSpec(**{"num_classes": num_classes, "norm_eps": 0.0, "frozen_stages": 2, **changes})


def torchvision_v2(num_classes: int = 90, **changes: Any) -> ModelSpec:
    """torchvision's ``maskrcnn_resnet50_fpn_v2``: heavier heads, batch norm everywhere."""
    values: dict[str, Any] = {
        "norm": "batch",
        "head_norm": "batch",
        "rpn_convs": 2,
        "box_head_convs": 4,
        "box_head_fcs": 1,
    }
    return ModelSpec(**{"num_classes": num_classes, "frozen_stages": 2, **values, **changes})


def torchvision_keypoint(num_keypoints: int = 17, **changes: Any) -> ModelSpec:
    """torchvision's ``keypointrcnn_resnet50_fpn``: persons and their keypoints, no masks."""
    values: dict[str, Any] = {"num_classes": 1, "num_keypoints": num_keypoints, "mask_head": "none"}
    return torchvision_v1(**{**values, **changes})


_DETECTRON2: dict[str, Any] = {
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
_ONE_MAP: dict[str, Any] = {
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
_KEYPOINT = {"num_classes": 1, "num_keypoints": 17, "mask_head": "none"}
# Names of detectron2's model zoo without their training schedule (_1x, _3x).
_ZOO: dict[str, dict[str, Any]] = {
    "mask_rcnn_R_50_FPN": {},
    "mask_rcnn_R_101_FPN": {"backbone": "resnet101"},
    "mask_rcnn_X_101_32x8d_FPN": _X101,
    "mask_rcnn_R_50_C4": _C4,
    "mask_rcnn_R_101_C4": {**_C4, "backbone": "resnet101"},
    "mask_rcnn_R_50_DC5": _DC5,
    "mask_rcnn_R_101_DC5": {**_DC5, "backbone": "resnet101"},
    "keypoint_rcnn_R_50_FPN": _KEYPOINT,
    "keypoint_rcnn_R_101_FPN": {**_KEYPOINT, "backbone": "resnet101"},
    "keypoint_rcnn_X_101_32x8d_FPN": {**_KEYPOINT, **_X101},
}


def detectron2(name: str, **changes: Any) -> ModelSpec:
    """The network of detectron2's model zoo with this name, such as ``mask_rcnn_R_50_FPN_3x``.

    Raises:
        ValueError: There is no such network.
    """
    values = _ZOO.get(name.removesuffix("_1x").removesuffix("_3x"))
    if values is None:
        raise ValueError(f"no detectron2 network {name!r}; allowed are {', '.join(_ZOO)} (and _1x, _3x)")
    return ModelSpec(**{"num_classes": 80, **_DETECTRON2, **values, **changes})


def preset(name: str) -> ModelSpec:
    """The network that torchvision (``maskrcnn_resnet50_fpn_v2``) or detectron2's model zoo publishes by this name.

    Raises:
        ValueError: There is no such network.
    """
    if name in _TORCHVISION:
        return _TORCHVISION[name]()
    try:
        return detectron2(name)
    except ValueError:
        names = ", ".join([*_TORCHVISION, *_ZOO])
        raise ValueError(f"no published network {name!r}; allowed are {names} (and _1x, _3x)") from None


_TORCHVISION = {
    "maskrcnn_resnet50_fpn": torchvision_v1,
    "maskrcnn_resnet50_fpn_v2": torchvision_v2,
    "keypointrcnn_resnet50_fpn": torchvision_keypoint,
}
TORCHVISION_NAMES = tuple(_TORCHVISION)
DETECTRON2_NAMES = tuple(_ZOO)
