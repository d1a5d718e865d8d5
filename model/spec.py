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


def _field(
    default: Any,
    description: str,
    low: float | None = None,
    high: float | None = None,
    allowed: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field with its meaning and the range that `ModelSpec.__post_init__` checks, both ends inclusive."""
    metadata = {"description": description, "low": low, "high": high, "allowed": allowed}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture, losses and thresholds of a network; the defaults are torchvision's ``maskrcnn_resnet50_fpn``.

    Sizes are pixels of the resized image unless said otherwise. `ModelSpec()` itself cannot be built: `num_classes` has
    to be known. `model.presets` has the specs of published networks.

    Raises:
        ValueError: A field of the wrong type or out of its range; the message names field, value and what is allowed.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic reads a plain attribute)

    num_classes: int = _field(
        0,
        "Foreground classes K; the network has K + 1 logits. 0 = as many as the data has (filled in before building).",
        0,
        100_000,
    )

    # --- image --------------------------------------------------------------------------------------------------------
    in_channels: int = _field(3, "Channels of an input image: three colours, then others such as depth.", 1, 64)
    channel_order: str = _field(
        "rgb",
        "The order in which the network wants the first three channels; images are always handed over as RGB.",
        allowed=("rgb", "bgr"),
    )
    image_min_size: int = _field(
        800,
        "The shorter side is resized to this many pixels, unless the longer one would then exceed image_max_size.",
        16,
        8192,
    )
    image_max_size: int = _field(1333, "Upper bound of the longer side of the resized image, in pixels.", 16, 8192)
    image_mean: tuple[float, ...] = _field(
        (0.485, 0.456, 0.406),
        "Subtracted from the 0..1 pixel values, one value for each channel, in channel_order. (0, ...) leaves the "
        "pixels as they are.",
    )
    image_std: tuple[float, ...] = _field(
        (0.229, 0.224, 0.225),
        "Divides the 0..1 pixel values after image_mean was subtracted, one value for each channel, in "
        "channel_order. (1, ...) leaves the pixels as they are.",
        1e-6,
    )

    # --- backbone -----------------------------------------------------------------------------------------------------
    backbone: str = _field(
        "resnet50",
        "The network that makes feature maps of the image; tiny is ours, the others are torchvision's.",
        allowed=BACKBONES,
    )
    neck: str = _field(
        "fpn",
        "The feature maps that the heads use. fpn: a pyramid of strides 4 to 64. c4: one map of stride 16; the "
        "last stage runs on every RoI. c5: the last stage's map, stride 32. dc5: the same, dilated, stride 16.",
        allowed=NECKS,
    )
    norm: str = _field(
        "frozen_batch",
        "The backbone's normalisation. frozen_batch only makes sense with loaded weights. VGG-16 has none.",
        allowed=NORMS,
    )
    norm_eps: float | None = _field(
        None,
        "Added to the variance. null = what the backbone's published weights were trained with (1e-5; MobileNet "
        "1e-3). torchvision's first COCO weights (V1) need 0.",
        0,
        0.1,
    )
    frozen_stages: int = _field(
        0,
        "Stages that are not trained, counted from the image: 0 none, 1 the stem, 2 the stem and the first stage...",
        0,
        5,
    )
    stride_in_1x1: bool = _field(
        False,
        "Whether a ResNet's bottleneck has its stride in its first (1x1) convolution, as in the first ResNets and "
        "detectron2's R50 and R101, or in its 3x3 one.",
    )
    attention: str = _field(
        "none",
        "squeeze_excite reweights the channels after each stage, starting as the identity.",
        allowed=("none", "squeeze_excite"),
    )
    stem_init: str = _field(
        "inflate",
        "The first convolution's weights when those loaded are for another number of channels. inflate: those, "
        "repeated and scaled to the same sum. fresh: random.",
        allowed=("inflate", "fresh"),
    )
    fpn_channels: int = _field(256, "Channels of every map of the pyramid.", 8, 2048)
    head_norm: str = _field(
        "none",
        "Normalisation in the pyramid and in the convolutions of the box and mask heads.",
        allowed=("none", "batch", "sync_batch", "group"),
    )

    # --- region proposals ---------------------------------------------------------------------------------------------
    anchor_sizes: tuple[tuple[float, ...], ...] = _field(
        ((32,), (64,), (128,), (256,), (512,)),
        "Side of the square whose area an anchor has: one tuple for each map, finest first (5 maps with fpn).",
        1,
    )
    anchor_ratios: tuple[float, ...] = _field((0.5, 1.0, 2.0), "Height / width, the same on each map.", 0.01, 100)
    anchor_style: str = _field(
        "torchvision",
        "torchvision: sides rounded to whole pixels, spaced by image side // map side. detectron2: sides not "
        "rounded, spaced by the map's stride.",
        allowed=("torchvision", "detectron2"),
    )
    rpn_channels: int | None = _field(
        None, "Channels of the RPN's 3x3 convolutions; null = those of the maps.", 8, 4096
    )
    rpn_convs: int = _field(1, "Number of the RPN's 3x3 convolutions.", 1, 8)
    rpn_pre_nms_train: int = _field(2000, "Proposals kept for each map before non-maximum suppression, in training.", 1)
    rpn_pre_nms_test: int = _field(1000, "The same in prediction.", 1)
    rpn_post_nms_train: int = _field(
        2000, "Proposals kept for each image after non-maximum suppression, in training.", 1
    )
    rpn_post_nms_test: int = _field(1000, "The same in prediction.", 1)
    rpn_min_proposals: int = _field(
        0, "Where suppression leaves fewer, the best of the suppressed boxes fill up to this number.", 0
    )
    rpn_nms_threshold: float = _field(0.7, "IoU above which the proposal with the lower score is suppressed.", 0, 1)
    rpn_foreground_iou: float = _field(0.7, "Anchors whose IoU with a true box is at or above this are positive.", 0, 1)
    rpn_background_iou: float = _field(
        0.3,
        "Anchors whose IoU with every true box is below this are negative; those between the two values are not used.",
        0,
        1,
    )
    rpn_batch_size_per_image: int = _field(256, "Anchors sampled for the loss in each image.", 1)
    rpn_positive_fraction: float = _field(0.5, "Largest fraction of the sampled anchors that is positive.", 0, 1)
    proposals: str = _field(
        "rpn",
        "The boxes that the RoI heads are trained on: the RPN's proposals, or the true boxes, with the RPN's where "
        "an image has none. Training only: a prediction always uses the RPN's and refuses true boxes.",
        allowed=("rpn", "ground_truth"),
    )

    # --- regions of interest ------------------------------------------------------------------------------------------
    roi_op: str = _field(
        "align",
        "align: bilinear samples at exact positions. pool: whole pixels of the rounded RoI. warp: bilinear samples "
        "of the rounded RoI.",
        allowed=("align", "pool", "warp"),
    )
    roi_reduce: str = _field("average", "Makes one value of the samples in a bin.", allowed=("average", "max"))
    roi_sampling_ratio: int = _field(
        2, "Samples along each side of a bin; 0 = as many as the bin has pixels (for max: 2).", 0, 16
    )
    roi_half_pixel: bool = _field(
        False,
        "Whether RoIAlign shifts by half a pixel, so that pixel centres lie at .5 (detectron2's ROIAlignV2).",
    )

    # --- box head -----------------------------------------------------------------------------------------------------
    box_head_convs: int = _field(0, "3x3 convolutions of the box head, which neck c4 does not have.", 0, 16)
    box_head_conv_channels: int = _field(256, "Channels of the box head's convolutions.", 8, 4096)
    box_head_fcs: int = _field(2, "Fully connected layers of the box head, after its convolutions.", 1, 8)
    box_head_channels: int = _field(1024, "Width of the box head's fully connected layers.", 8, 8192)
    box_batch_size_per_image: int = _field(512, "RoIs sampled for the loss in each image.", 1)
    box_positive_fraction: float = _field(0.25, "Largest fraction of the sampled RoIs that is positive.", 0, 1)
    box_foreground_iou: float = _field(0.5, "RoIs whose IoU with a true box is at or above this are positive.", 0, 1)
    box_background_iou: float = _field(0.5, "RoIs whose IoU with every true box is below this are negative.", 0, 1)
    box_regression_weights: tuple[float, ...] = _field(
        (10.0, 10.0, 5.0, 5.0), "Scale of the regression targets (dx, dy, dw, dh).", 1e-6
    )

    # --- mask head ----------------------------------------------------------------------------------------------------
    mask_head: str = _field(
        "fcn",
        "fcn: 3x3 convolutions at half the output size, then a deconvolution. conv5: five 3x3 convolutions at 7x7, "
        "then deconvolutions. mlp: two or three fully connected layers on 7x7, then all pixels at once. none: "
        "boxes (and keypoints) alone.",
        allowed=("fcn", "conv5", "mlp", "none"),
    )
    mask_head_channels: tuple[int, ...] = _field(
        (256, 256, 256, 256),
        "Channels of the mask head's convolutions, or widths of its fully connected layers.",
        8,
        8192,
    )
    mask_deconv_channels: int = _field(256, "Channels of the mask head's deconvolution.", 8, 4096)
    mask_output_size: int = _field(28, "Side of the mask over its box.", allowed=(14, 28, 56))
    mask_activation: str = _field(
        "sigmoid",
        "sigmoid: each class by itself. softmax: the classes (and background) compete for each pixel.",
        allowed=("sigmoid", "softmax"),
    )
    mask_class_agnostic: bool = _field(
        False,
        "One mask for all classes, instead of one for each.",
    )

    # --- keypoint head ------------------------------------------------------------------------------------------------
    num_keypoints: int = _field(
        0, "Keypoints of an instance, as one-hot heat maps of 56 x 56; 0 = no keypoint head.", 0, 1000
    )
    keypoint_head_channels: tuple[int, ...] = _field(
        (512,) * 8, "Channels of the keypoint head's 3x3 convolutions.", 8, 8192
    )

    # --- losses -------------------------------------------------------------------------------------------------------
    class_loss: str = _field(
        "cross_entropy",
        "focal: sigmoid focal loss; class scores are then sigmoids in prediction too, not a softmax.",
        allowed=("cross_entropy", "focal"),
    )
    focal_alpha: float = _field(0.25, "Weight of the positive class in the focal loss.", 0, 1)
    focal_gamma: float = _field(2.0, "Exponent of the focal loss.", 0, 10)
    box_loss: str = _field("smooth_l1", "Loss of the boxes.", allowed=BOX_LOSSES)
    box_loss_beta: float = _field(1 / 9, "Absolute error at which smooth L1 turns from quadratic to linear.", 1e-6, 10)
    mask_loss: str = _field(
        "bce", "Loss of the masks: binary cross-entropy, Dice, or their sum.", allowed=("bce", "dice", "bce_dice")
    )
    class_loss_weight: float = _field(1.0, "Factor of the class loss in the sum of losses.", 0)
    box_loss_weight: float = _field(1.0, "Factor of the box loss in the sum of losses.", 0)
    mask_loss_weight: float = _field(1.0, "Factor of the mask loss in the sum of losses.", 0)
    keypoint_loss_weight: float = _field(1.0, "Factor of the keypoint loss in the sum of losses.", 0)
    rpn_box_loss: str = _field("smooth_l1", "The RPN's box term, with the same names.", allowed=BOX_LOSSES)
    rpn_box_loss_beta: float = _field(1 / 9, "As box_loss_beta, of the RPN's boxes.", 1e-6, 10)
    rpn_class_loss_weight: float = _field(1.0, "Factor of the RPN's objectness loss.", 0)
    rpn_box_loss_weight: float = _field(1.0, "Factor of the RPN's box loss.", 0)
    ignore_overlap: float = _field(
        0.5, "An anchor or RoI with at least this fraction of its area in an ignored region is no negative.", 1e-6, 1
    )
    rpn_partial_negatives: bool = _field(
        True,
        "Whether the RPN, which knows no classes, takes negatives from images where only some of the classes (but "
        "at least one) were annotated.",
    )

    # --- prediction ---------------------------------------------------------------------------------------------------
    score_threshold: float = _field(0.05, "Detections with a lower score are dropped.", 0, 1)
    nms: str = _field(
        "hard",
        "hard: boxes of one class that overlap by more than nms_threshold are suppressed. soft_linear, "
        "soft_gaussian: they get lower scores (Soft-NMS).",
        allowed=("hard", "soft_linear", "soft_gaussian"),
    )
    nms_threshold: float = _field(0.5, "IoU above which boxes of one class are suppressed.", 0, 1)
    soft_nms_sigma: float = _field(0.5, "Width of Soft-NMS's Gaussian.", 1e-6)
    max_detections: int = _field(100, "Most detections of an image.", 1)

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
        spec = cls(
            num_classes=num_classes,
            backbone="tiny",
            norm="group",
            image_min_size=128,
            image_max_size=256,
            fpn_channels=64,
            anchor_sizes=((8,), (16,), (32,), (64,), (128,)),
            rpn_pre_nms_train=200,
            rpn_pre_nms_test=100,
            rpn_post_nms_train=100,
            rpn_post_nms_test=50,
            rpn_batch_size_per_image=64,
            head_norm="group",
            box_head_convs=2,
            box_head_conv_channels=64,
            box_head_fcs=1,
            box_head_channels=256,
            box_batch_size_per_image=32,
            mask_head_channels=(64, 64),
            mask_deconv_channels=64,
            keypoint_head_channels=(64, 64, 64, 64),
        )
        return spec.replace(**changes)

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
