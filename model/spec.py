"""ModelSpec: everything that says what a network is, in one frozen value that travels with its checkpoint."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BACKBONES = ("tiny", *RESNETS)
NORMS = ("frozen_batch", "batch", "sync_batch", "group")


def _field(default: Any, low: float | None = None, high: float | None = None, allowed: tuple = ()) -> Any:
    """A dataclass field whose range `ModelSpec.__post_init__` checks; `low` and `high` are inclusive."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a network is; the defaults are those of torchvision's ``maskrcnn_resnet50_fpn``.

    Sizes are pixels of the resized image unless said otherwise. `ModelSpec()` itself cannot be built: `num_classes` has
    to be known.

    Raises:
        ValueError: A field of the wrong type or out of its range; the sentence names field, value and what is allowed.
    """

    __pydantic_config__ = {"extra": "forbid"}

    # --- image -------------------------------------------------------------------------------------------------------
    # Colour (and other) channels of an input image.
    in_channels: int = _field(3, 1, 64)
    # The shorter side is resized to this, unless the longer one would then exceed `image_max_size`.
    image_min_size: int = _field(800, 16, 8192)
    image_max_size: int = _field(1333, 16, 8192)
    # Subtracted from, and dividing, the 0..1 pixel values; one value for each channel. (0, ...) and (1, ...) = plain.
    image_mean: tuple[float, ...] = _field((0.485, 0.456, 0.406))
    image_std: tuple[float, ...] = _field((0.229, 0.224, 0.225), 1e-6)

    # --- backbone ----------------------------------------------------------------------------------------------------
    backbone: str = _field("resnet50", allowed=BACKBONES)
    # The backbone's normalisation. "frozen_batch" only makes sense with loaded weights.
    norm: str = _field("frozen_batch", allowed=NORMS)
    # Stages that are not trained, counted from the image: 0 none, 1 the stem, 2 the stem and the first stage, ...
    frozen_stages: int = _field(0, 0, 5)
    fpn_channels: int = _field(256, 8, 2048)

    # --- region proposals --------------------------------------------------------------------------------------------
    # Foreground classes K; the network has K + 1 logits. 0 = as many as the data has (to be filled in before building).
    num_classes: int = _field(0, 0, 100_000)
    # Side of the square whose area an anchor has: one tuple for each pyramid level, finest first.
    anchor_sizes: tuple[tuple[float, ...], ...] = _field(((32,), (64,), (128,), (256,), (512,)), 1)
    # Height / width, the same on each level.
    anchor_ratios: tuple[float, ...] = _field((0.5, 1.0, 2.0), 0.01, 100)
    # Proposals kept for each level before, and for each image after, non-maximum suppression.
    rpn_pre_nms_train: int = _field(2000, 1)
    rpn_pre_nms_test: int = _field(1000, 1)
    rpn_post_nms_train: int = _field(2000, 1)
    rpn_post_nms_test: int = _field(1000, 1)
    rpn_nms_threshold: float = _field(0.7, 0, 1)
    # Anchors with an IoU at or above are positive, below negative, between the two not used.
    rpn_foreground_iou: float = _field(0.7, 0, 1)
    rpn_background_iou: float = _field(0.3, 0, 1)
    # Anchors sampled for the loss in each image, and the largest part of them that is positive.
    rpn_batch_size_per_image: int = _field(256, 1)
    rpn_positive_fraction: float = _field(0.5, 0, 1)

    # --- box head ----------------------------------------------------------------------------------------------------
    box_head_channels: int = _field(1024, 8, 8192)
    # RoIs sampled for the loss in each image, and the largest part of them that is positive (1:3).
    box_batch_size_per_image: int = _field(512, 1)
    box_positive_fraction: float = _field(0.25, 0, 1)
    box_foreground_iou: float = _field(0.5, 0, 1)
    box_background_iou: float = _field(0.5, 0, 1)
    # Scale of the regression targets (dx, dy, dw, dh).
    box_regression_weights: tuple[float, ...] = _field((10.0, 10.0, 5.0, 5.0), 1e-6)

    # --- mask head ---------------------------------------------------------------------------------------------------
    # Widths of the 3x3 convolutions before the deconvolution.
    mask_head_channels: tuple[int, ...] = _field((256, 256, 256, 256), 8, 8192)

    # --- keypoint head -----------------------------------------------------------------------------------------------
    # Keypoints of an instance; 0 = no keypoint head.
    num_keypoints: int = _field(0, 0, 1000)
    keypoint_head_channels: tuple[int, ...] = _field((512,) * 8, 8, 8192)

    # --- prediction --------------------------------------------------------------------------------------------------
    score_threshold: float = _field(0.05, 0, 1)
    nms_threshold: float = _field(0.5, 0, 1)
    max_detections: int = _field(100, 1)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _to_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field.name, value, field.metadata)
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.in_channels:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has {len(getattr(self, name))} values; "
                    f"in_channels={self.in_channels} needs one for each channel"
                )
        if len(self.box_regression_weights) != 4:
            raise ValueError(f"box_regression_weights={self.box_regression_weights!r}: allowed are four values")
        for low, high in (
            ("image_min_size", "image_max_size"),
            ("rpn_background_iou", "rpn_foreground_iou"),
            ("box_background_iou", "box_foreground_iou"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} must not be above {high}={getattr(self, high)}")
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor_sizes={self.anchor_sizes!r}: allowed is one tuple for each of the 5 levels")

    @classmethod
    def tiny(cls, num_classes: int, **changes: Any) -> ModelSpec:
        """A small network for images of about 128 px that trains from scratch on a CPU in minutes."""
        return cls(
            **{
                "num_classes": num_classes,
                "backbone": "tiny",
                "norm": "group",
                "image_min_size": 128,
                "image_max_size": 256,
                "fpn_channels": 64,
                "anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
                "rpn_pre_nms_train": 200,
                "rpn_pre_nms_test": 100,
                "rpn_post_nms_train": 100,
                "rpn_post_nms_test": 50,
                "rpn_batch_size_per_image": 64,
                "box_head_channels": 256,
                "box_batch_size_per_image": 32,
                "mask_head_channels": (64, 64),
                **changes,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values (tuples become lists), such that ``from_dict`` gives an equal spec."""
        return {field.name: _to_lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The spec of plain values; fields left out have their defaults.

        Raises:
            ValueError: An unknown field, or a value that is not allowed.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model spec field {unknown[0]!r}")
        return cls(**values)

    def replace(self, **changes: Any) -> ModelSpec:
        """This spec with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _to_type(name: str, value: Any, hint: Any) -> Any:
    """`value` with lists made tuples and whole numbers made floats where the field wants them; else a ValueError."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"{name}={value!r}: allowed is a sequence of at least one value")
        return tuple(_to_type(name, item, typing.get_args(hint)[0]) for item in value)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name}={value!r}: allowed is a value of type {hint.__name__}")
    return value


def _check_range(name: str, value: Any, limits: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(name, item, limits)
        return
    low, high, allowed = limits["low"], limits["high"], limits["allowed"]
    if allowed and value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
    # Written so that NaN fails too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name}={value!r}: allowed is at least {low}{upper}")
