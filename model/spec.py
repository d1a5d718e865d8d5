"""ModelSpec: the architecture, losses and thresholds of a network as one frozen dataclass, stored with its weights."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

# ResNets made of basic blocks, and those made of bottlenecks.
BASIC_RESNETS = ("resnet18", "resnet34")
BOTTLENECK_RESNETS = (
    *("resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext50_32x8d", "resnext50_64x4d"),
    *("resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
RESNETS = BASIC_RESNETS + BOTTLENECK_RESNETS
EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3")
BACKBONES = ("tiny", *RESNETS, "mobilenet_v3_large", *EFFICIENTNETS, "vgg16")
NECKS = ("fpn", "c4", "c5", "dc5")
NORMS = ("frozen_batch", "batch", "sync_batch", "group")
BOX_LOSSES = ("smooth_l1", "l1", "iou", "giou", "diou", "ciou")
# Allowed numbers of `mask_head_channels` by mask head: convolutions, or fully connected layers of the MLP.
_MASK_HEAD_DEPTHS = {"fcn": range(0, 33), "conv5": (5,), "mlp": (2, 3), "none": range(0, 33)}


def _field(default: Any, low: float | None = None, high: float | None = None, allowed: tuple[Any, ...] = ()) -> Any:
    """A dataclass field whose range `ModelSpec.__post_init__` checks; `low` and `high` are inclusive."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture, losses and thresholds of a network; the defaults are torchvision's ``maskrcnn_resnet50_fpn``.

    Sizes are pixels of the resized image unless said otherwise. `ModelSpec()` itself cannot be built: `num_classes` has
    to be known. `model.presets` has the specs of published networks.

    Raises:
        ValueError: A field of the wrong type or out of its range; the message names field, value and what is allowed.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic reads a plain attribute)

    # Foreground classes K; the network has K + 1 logits. 0 = as many as the data has (filled in before building).
    num_classes: int = _field(0, 0, 100_000)

    # --- image --------------------------------------------------------------------------------------------------------
    # Channels of an input image: three colours, then others such as depth.
    in_channels: int = _field(3, 1, 64)
    # The order in which the network wants the first three channels; images are always handed over as RGB.
    channel_order: str = _field("rgb", allowed=("rgb", "bgr"))
    # The shorter side is resized to this, unless the longer one would then exceed `image_max_size`.
    image_min_size: int = _field(800, 16, 8192)
    image_max_size: int = _field(1333, 16, 8192)
    # Subtracted from, and dividing, the 0..1 pixel values, one value for each channel, in `channel_order`.
    # (0, ...) and (1, ...) leave the pixels as they are.
    image_mean: tuple[float, ...] = _field((0.485, 0.456, 0.406))
    image_std: tuple[float, ...] = _field((0.229, 0.224, 0.225), 1e-6)

    # --- backbone -----------------------------------------------------------------------------------------------------
    backbone: str = _field("resnet50", allowed=BACKBONES)
    # The feature maps that the heads use. "fpn": a pyramid of strides 4 to 64. "c4": one map of stride 16; the last
    # stage runs on every RoI. "c5": the last stage's map, stride 32. "dc5": the same, dilated, stride 16.
    neck: str = _field("fpn", allowed=NECKS)
    # The backbone's normalisation. "frozen_batch" only makes sense with loaded weights. VGG-16 has none.
    norm: str = _field("frozen_batch", allowed=NORMS)
    # Added to the variance. None = what the backbone's published weights were trained with (1e-5; MobileNet 1e-3).
    # torchvision's first COCO weights (V1) need 0.
    norm_eps: float | None = _field(None, 0, 0.1)
    # Stages that are not trained, counted from the image: 0 none, 1 the stem, 2 the stem and the first stage...
    frozen_stages: int = _field(0, 0, 5)
    # Whether a ResNet's bottleneck has its stride in its first (1x1) convolution, as in the first ResNets and
    # detectron2's R50 and R101, or in its 3x3 one.
    stride_in_1x1: bool = _field(False)
    # "squeeze_excite" reweights the channels after each stage, starting as the identity.
    attention: str = _field("none", allowed=("none", "squeeze_excite"))
    # The first convolution's weights when those loaded are for another number of channels: theirs, repeated and scaled
    # to the same sum ("inflate"), or random ("fresh").
    stem_init: str = _field("inflate", allowed=("inflate", "fresh"))
    fpn_channels: int = _field(256, 8, 2048)
    # Normalisation in the pyramid and in the convolutions of the box and mask heads.
    head_norm: str = _field("none", allowed=("none", "batch", "sync_batch", "group"))

    # --- region proposals ---------------------------------------------------------------------------------------------
    # Side of the square whose area an anchor has: one tuple for each map, finest first (5 maps with "fpn").
    anchor_sizes: tuple[tuple[float, ...], ...] = _field(((32,), (64,), (128,), (256,), (512,)), 1)
    # Height / width, the same on each map.
    anchor_ratios: tuple[float, ...] = _field((0.5, 1.0, 2.0), 0.01, 100)
    # "torchvision": sides rounded to whole pixels, spaced by image side // map side. "detectron2": sides not rounded,
    # spaced by the map's stride.
    anchor_style: str = _field("torchvision", allowed=("torchvision", "detectron2"))
    # Channels of the RPN's 3x3 convolutions, None = those of the maps; and how many convolutions.
    rpn_channels: int | None = _field(None, 8, 4096)
    rpn_convs: int = _field(1, 1, 8)
    # Proposals kept for each map before, and for each image after, non-maximum suppression.
    rpn_pre_nms_train: int = _field(2000, 1)
    rpn_pre_nms_test: int = _field(1000, 1)
    rpn_post_nms_train: int = _field(2000, 1)
    rpn_post_nms_test: int = _field(1000, 1)
    # Where suppression leaves fewer, the best of the suppressed boxes fill up to this number.
    rpn_min_proposals: int = _field(0, 0)
    rpn_nms_threshold: float = _field(0.7, 0, 1)
    # Anchors whose IoU is at or above the foreground value are positive, below the background value negative; those
    # between the two are not used.
    rpn_foreground_iou: float = _field(0.7, 0, 1)
    rpn_background_iou: float = _field(0.3, 0, 1)
    # Anchors sampled for the loss in each image, and the largest fraction of them that is positive.
    rpn_batch_size_per_image: int = _field(256, 1)
    rpn_positive_fraction: float = _field(0.5, 0, 1)
    # The boxes that the RoI heads are trained on: the RPN's proposals, or the true boxes, with the RPN's where an image
    # has none. Training only: a prediction always uses the RPN's and refuses true boxes.
    proposals: str = _field("rpn", allowed=("rpn", "ground_truth"))

    # --- regions of interest ------------------------------------------------------------------------------------------
    # "align": bilinear samples at exact positions. "pool": whole pixels of the rounded RoI. "warp": bilinear samples of
    # the rounded RoI. `roi_reduce` makes one value of those in a bin.
    roi_op: str = _field("align", allowed=("align", "pool", "warp"))
    roi_reduce: str = _field("average", allowed=("average", "max"))
    # Samples along each side of a bin; 0 = as many as the bin has pixels (for "max": 2).
    roi_sampling_ratio: int = _field(2, 0, 16)
    # Whether RoIAlign shifts by half a pixel, so that pixel centres lie at .5 (detectron2's ROIAlignV2).
    roi_half_pixel: bool = _field(False)

    # --- box head -----------------------------------------------------------------------------------------------------
    # Number and channels of 3x3 convolutions, then number and width of fully connected layers. Not used with "c4".
    box_head_convs: int = _field(0, 0, 16)
    box_head_conv_channels: int = _field(256, 8, 4096)
    box_head_fcs: int = _field(2, 1, 8)
    box_head_channels: int = _field(1024, 8, 8192)
    # RoIs sampled for the loss in each image, and the largest fraction of them that is positive (1:3).
    box_batch_size_per_image: int = _field(512, 1)
    box_positive_fraction: float = _field(0.25, 0, 1)
    box_foreground_iou: float = _field(0.5, 0, 1)
    box_background_iou: float = _field(0.5, 0, 1)
    # Scale of the regression targets (dx, dy, dw, dh).
    box_regression_weights: tuple[float, ...] = _field((10.0, 10.0, 5.0, 5.0), 1e-6)

    # --- mask head ----------------------------------------------------------------------------------------------------
    # "fcn": 3x3 convolutions at half the output size, then a deconvolution. "conv5": five 3x3 convolutions at 7x7, then
    # deconvolutions. "mlp": two or three fully connected layers on 7x7, then all pixels at once. "none": boxes (and
    # keypoints) alone.
    mask_head: str = _field("fcn", allowed=("fcn", "conv5", "mlp", "none"))
    # Channels of those convolutions, or widths of the fully connected layers.
    mask_head_channels: tuple[int, ...] = _field((256, 256, 256, 256), 8, 8192)
    mask_deconv_channels: int = _field(256, 8, 4096)
    # Side of the mask over its box.
    mask_output_size: int = _field(28, allowed=(14, 28, 56))
    # "sigmoid": each class by itself. "softmax": the classes (and background) compete for each pixel.
    mask_activation: str = _field("sigmoid", allowed=("sigmoid", "softmax"))
    # One mask for all classes, instead of one for each.
    mask_class_agnostic: bool = _field(False)

    # --- keypoint head ------------------------------------------------------------------------------------------------
    # Keypoints of an instance; 0 = no keypoint head. One-hot heat maps of 56 x 56.
    num_keypoints: int = _field(0, 0, 1000)
    keypoint_head_channels: tuple[int, ...] = _field((512,) * 8, 8, 8192)

    # --- losses -------------------------------------------------------------------------------------------------------
    # "focal": sigmoid focal loss; class scores are then sigmoids in prediction too, not a softmax.
    class_loss: str = _field("cross_entropy", allowed=("cross_entropy", "focal"))
    focal_alpha: float = _field(0.25, 0, 1)
    focal_gamma: float = _field(2.0, 0, 10)
    box_loss: str = _field("smooth_l1", allowed=BOX_LOSSES)
    # Absolute error at which smooth L1 turns from quadratic to linear.
    box_loss_beta: float = _field(1 / 9, 1e-6, 10)
    mask_loss: str = _field("bce", allowed=("bce", "dice", "bce_dice"))
    class_loss_weight: float = _field(1.0, 0)
    box_loss_weight: float = _field(1.0, 0)
    mask_loss_weight: float = _field(1.0, 0)
    keypoint_loss_weight: float = _field(1.0, 0)
    # The RPN's box term, with the same names.
    rpn_box_loss: str = _field("smooth_l1", allowed=BOX_LOSSES)
    rpn_box_loss_beta: float = _field(1 / 9, 1e-6, 10)
    rpn_class_loss_weight: float = _field(1.0, 0)
    rpn_box_loss_weight: float = _field(1.0, 0)
    # An anchor or RoI with at least this fraction of its area in an ignored region is no negative.
    ignore_overlap: float = _field(0.5, 1e-6, 1)
    # Whether the RPN, which knows no classes, takes negatives from images where only some of the classes (but at least
    # one) were annotated.
    rpn_partial_negatives: bool = _field(True)

    # --- prediction ---------------------------------------------------------------------------------------------------
    score_threshold: float = _field(0.05, 0, 1)
    # Boxes of one class that overlap by more than the threshold are suppressed ("hard"), or get lower scores
    # (Soft-NMS).
    nms: str = _field("hard", allowed=("hard", "soft_linear", "soft_gaussian"))
    nms_threshold: float = _field(0.5, 0, 1)
    soft_nms_sigma: float = _field(0.5, 1e-6)
    max_detections: int = _field(100, 1)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _to_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field.name, value, field.metadata)
        self._check_together()

    def _check_together(self) -> None:
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.in_channels:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has {len(getattr(self, name))} values; "
                    f"in_channels={self.in_channels} needs one for each channel"
                )
        for low, high in (
            ("image_min_size", "image_max_size"),
            ("rpn_background_iou", "rpn_foreground_iou"),
            ("box_background_iou", "box_foreground_iou"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} must not be above {high}={getattr(self, high)}")
        if self.channel_order == "bgr" and self.in_channels < 3:
            raise ValueError(f"channel_order='bgr' needs in_channels of at least 3, not {self.in_channels}")
        if len(self.box_regression_weights) != 4:
            raise ValueError(f"box_regression_weights={self.box_regression_weights!r}: allowed are 4 values")
        levels = 5 if self.neck == "fpn" else 1
        if len(self.anchor_sizes) != levels or not all(self.anchor_sizes):
            raise ValueError(
                f"anchor_sizes={self.anchor_sizes!r}: neck={self.neck!r} needs {levels} tuple(s) of sizes, "
                f"one for each map"
            )
        for name in ("anchor_ratios", "keypoint_head_channels"):
            if not getattr(self, name):
                raise ValueError(f"{name}=(): allowed is at least one value")
        if self.neck == "c4" and self.backbone not in RESNETS:
            raise ValueError(f"neck='c4' needs a ResNet or ResNeXt, not backbone={self.backbone!r}")
        for name in ("neck", "stride_in_1x1"):
            value = getattr(self, name)
            if value in ("dc5", True) and self.backbone not in BOTTLENECK_RESNETS:
                raise ValueError(f"{name}={value!r} needs bottlenecks; backbone={self.backbone!r} has none")
        if len(self.mask_head_channels) not in _MASK_HEAD_DEPTHS[self.mask_head]:
            depths = " or ".join(map(str, _MASK_HEAD_DEPTHS[self.mask_head]))
            raise ValueError(
                f"mask_head_channels={self.mask_head_channels!r}: mask_head={self.mask_head!r} needs {depths} values"
            )

    @classmethod
    def tiny(cls, num_classes: int, **changes: Any) -> ModelSpec:
        """A small network for images of about 128 px that trains from scratch on a CPU in minutes."""
        values: dict[str, Any] = {
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
            "head_norm": "group",
            "box_head_convs": 2,
            "box_head_conv_channels": 64,
            "box_head_fcs": 1,
            "box_head_channels": 256,
            "box_batch_size_per_image": 32,
            "mask_head_channels": (64, 64),
            "mask_deconv_channels": 64,
            "keypoint_head_channels": (64, 64, 64, 64),
        }
        return cls(**{**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values (tuples become lists), from which ``from_dict`` makes an equal spec."""
        return {field.name: _to_lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The spec of plain values, the inverse of ``to_dict``; absent fields have their defaults.

        Raises:
            ValueError: An unknown field, or a value that is not allowed.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model spec field {unknown[0]!r}")
        return cls(**values)

    def replace(self, **changes: Any) -> ModelSpec:
        """A copy with some fields changed; raises ValueError like the constructor."""
        return dataclasses.replace(self, **changes)


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _to_type(name: str, value: Any, hint: Any) -> Any:
    """`value` with lists made tuples and integers floats where the field's type asks for it; else a ValueError."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name}={value!r}: allowed is a sequence of values")
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
    if value is None:
        return
    if isinstance(value, tuple):
        for item in value:
            _check_range(name, item, limits)
        return
    low, high, allowed = limits["low"], limits["high"], limits["allowed"]
    if allowed and value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
    if isinstance(value, float) and value in (float("inf"), -float("inf")):
        raise ValueError(f"{name}={value!r}: allowed is a finite number")
    # Written so that NaN fails too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name}={value!r}: allowed is at least {low}{upper}")
