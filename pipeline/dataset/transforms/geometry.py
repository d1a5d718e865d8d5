"""Geometric transforms of a sample: resizing, cropping and rotation of photo, masks, boxes and keypoints together.

The form of a sample is that of `sample.py`. Photos are resampled bilinearly and masks to the nearest pixel centre, so
that both stay in register. After a crop or a rotation the boxes are computed again from the masks, because a rotated
box is too large and a cropped one too loose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.dataset.sample import SampleDict, draw, draw_index, happens, size_of
from pipeline.dataset.types import mask_to_box

_NEAREST = InterpolationMode.NEAREST_EXACT  # plain NEAREST is half a pixel off the photo
_BILINEAR = InterpolationMode.BILINEAR


def resize_sample(sample: SampleDict, size: tuple[int, int]) -> SampleDict:
    """The sample stretched to (H, W)."""
    old_height, old_width = size_of(sample)
    height, width = size
    if (height, width) == (old_height, old_width):
        return sample
    scale = torch.tensor([width / old_width, height / old_height])
    resized = dict(sample)
    photo = sample["image"].as_subclass(Tensor)
    resized["image"] = tv_tensors.Image(F.resize_image(photo, [height, width], _BILINEAR, antialias=True))
    resized["masks"] = tv_tensors.Mask(F.resize_image(sample["masks"].as_subclass(Tensor), [height, width], _NEAREST))
    for name in ("boxes", "ignore_boxes"):
        resized[name] = _as_boxes(sample[name].as_subclass(Tensor) * scale.repeat(2), size)
    if "keypoints" in sample:
        points = sample["keypoints"].as_subclass(Tensor) * scale
        resized["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=size)
    return resized


def crop_sample(sample: SampleDict, top: int, left: int, size: tuple[int, int]) -> SampleDict:
    """The window of size (H, W) whose corner is at (top, left); pixels outside the photo are zero.

    Boxes are computed again from the masks unless the whole photo is inside the window.
    """
    height, width = size
    old_height, old_width = size_of(sample)
    cropped = dict(sample)
    cropped["image"] = tv_tensors.Image(F.crop_image(sample["image"].as_subclass(Tensor), top, left, height, width))
    cropped["masks"] = tv_tensors.Mask(F.crop_image(sample["masks"].as_subclass(Tensor), top, left, height, width))
    corner = torch.tensor([left, top], dtype=torch.float32)
    for name in ("boxes", "ignore_boxes"):
        cropped[name] = _as_boxes(sample[name].as_subclass(Tensor) - corner.repeat(2), size)
    if "keypoints" in sample:
        points = sample["keypoints"].as_subclass(Tensor) - corner
        cropped["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=size)
    is_padding_only = top <= 0 and left <= 0 and top + height >= old_height and left + width >= old_width
    return cropped if is_padding_only else boxes_from_masks(cropped)


def rotate_sample(sample: SampleDict, degrees: float, *, expand: bool = False) -> SampleDict:
    """The sample rotated counter-clockwise about its centre; corners outside the photo are black.

    Args:
        sample: to rotate.
        degrees: of the rotation.
        expand: grow the canvas so that nothing is cut off.
    """
    rotated = dict(sample)
    photo = F.rotate(tv_tensors.Image(sample["image"]), degrees, _BILINEAR, expand=expand)
    size = (photo.shape[-2], photo.shape[-1])
    masks = sample["masks"]
    if len(masks):
        masks = F.rotate(tv_tensors.Mask(masks), degrees, InterpolationMode.NEAREST, expand=expand)
    else:
        masks = tv_tensors.Mask(masks.new_zeros((0, *size)))
    rotated["image"], rotated["masks"] = photo, masks
    ignore_boxes = F.rotate(sample["ignore_boxes"], degrees, expand=expand)
    rotated["ignore_boxes"] = _as_boxes(ignore_boxes.as_subclass(Tensor), size)
    rotated["boxes"] = _as_boxes(sample["boxes"].as_subclass(Tensor), size)
    if "keypoints" in sample:
        points = F.rotate(sample["keypoints"], degrees, expand=expand).as_subclass(Tensor)
        rotated["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=size)
    return boxes_from_masks(rotated)


def boxes_from_masks(sample: SampleDict) -> SampleDict:
    """The sample with each box tight around its mask, XYXY half-open; (0, 0, 0, 0) for an empty mask."""
    return {**sample, "boxes": _as_boxes(mask_boxes(sample["masks"].as_subclass(Tensor)), size_of(sample))}


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes of masks [N, H, W]: float32 [N, 4], XYXY half-open; zeros for an empty mask."""
    return torch.tensor([mask_to_box(mask) for mask in masks.numpy()], dtype=torch.float32).reshape(-1, 4)


class FixedSize:
    """Resizes every photo to one size (H, W): stretched, or with its aspect ratio and zeros to the right and below."""

    def __init__(self, size: tuple[int, int], *, keep_aspect: bool = False) -> None:
        self.size = _size("resize_size", size)
        self.keep_aspect = keep_aspect

    def __call__(self, sample: SampleDict) -> SampleDict:
        if not self.keep_aspect:
            return resize_sample(sample, self.size)
        height, width = size_of(sample)
        scale = min(self.size[0] / height, self.size[1] / width)
        fitted = resize_sample(sample, _scaled((height, width), scale, limit=self.size))
        return crop_sample(fitted, 0, 0, self.size)


class ShortSide:
    """Resizes the short side to one of several lengths, drawn for each sample; the long side is at most `max_size`."""

    def __init__(self, lengths: Sequence[int], max_size: int) -> None:
        if not lengths or min(lengths) < 1 or max_size < max(lengths):
            raise ValueError(
                f"short_sides is {tuple(lengths)} with max_size {max_size}; allowed are lengths of 1 px up to max_size"
            )
        self.lengths = tuple(lengths)
        self.max_size = max_size

    def __call__(self, sample: SampleDict) -> SampleDict:
        length = self.lengths[draw_index(len(self.lengths))]
        height, width = size_of(sample)
        scale = min(length / min(height, width), self.max_size / max(height, width))
        return resize_sample(sample, _scaled((height, width), scale))


class LargeScaleJitter:
    """A random scale, then a random window of a fixed size (Ghiasi et al., Simple Copy-Paste, 2021, section 3).

    The photo is scaled, with its aspect ratio, to fit into `size` times a factor drawn uniformly from `scales`. Where
    it is then larger than `size`, a window is cropped at a random position. Where it is smaller, zeros are added to
    the right and below.
    """

    def __init__(self, size: tuple[int, int], scales: tuple[float, float] = (0.1, 2.0)) -> None:
        self.size = _size("resize_size", size)
        if not 0 < scales[0] <= scales[1]:
            raise ValueError(f"jitter_scales is {scales}; allowed are two rising numbers above 0")
        self.scales = scales

    def __call__(self, sample: SampleDict) -> SampleDict:
        height, width = size_of(sample)
        scale = draw(*self.scales) * min(self.size[0] / height, self.size[1] / width)
        scaled = resize_sample(sample, _scaled((height, width), scale))
        height, width = size_of(scaled)
        top, left = (draw_index(max(side - window, 0) + 1) for side, window in zip((height, width), self.size))
        return crop_sample(scaled, top, left, self.size)


class Rotation:
    """Rotates, with a probability, by an angle drawn uniformly from -degrees to degrees."""

    def __init__(self, probability: float, degrees: float, *, expand: bool = False) -> None:
        self.probability = probability
        self.degrees = degrees
        self.expand = expand

    def __call__(self, sample: SampleDict) -> SampleDict:
        if not happens(self.probability):
            return sample
        return rotate_sample(sample, draw(-self.degrees, self.degrees), expand=self.expand)


def _scaled(size: tuple[int, int], scale: float, limit: tuple[int, int] | None = None) -> tuple[int, int]:
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return (height, width) if limit is None else (min(height, limit[0]), min(width, limit[1]))


def _size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} is {size}; allowed is (height, width), both of at least 1 px")
    return (int(size[0]), int(size[1]))


def _as_boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
