"""Random augmentation of a training sample with torchvision.transforms.v2: colour, flips, rotation, resizing.

Photo, masks, boxes and keypoints are changed together. The form of a sample is that of `sample.py`. Everything random
here is a function of the seed that the loader sets for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.dataset.sample import SampleDict, Transform, happens
from pipeline.dataset.transforms.geometry import FixedSize, LargeScaleJitter, Rotation, ShortSide
from pipeline.dataset.transforms.settings import RESIZES, Augmentation


def build_transforms(settings: Augmentation, keypoint_names: Sequence[str] = ()) -> Transform:
    """One transform of all that the settings ask for, in this order: colour, flips, rotation, resizing.

    A horizontal flip exchanges left and right ones of the data set's `keypoint_names`.

    Raises:
        ValueError: a value out of range.
    """
    steps: list[Transform] = []
    if settings.brightness or settings.contrast or settings.saturation or settings.hue:
        steps.append(ColourJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue))
    if settings.horizontal_flip:
        steps.append(Flip(settings.horizontal_flip, axis=0, order=flip_order(keypoint_names)))
    if settings.vertical_flip:
        steps.append(Flip(settings.vertical_flip, axis=1))
    if settings.rotation and settings.rotation_degrees:
        steps.append(Rotation(settings.rotation, settings.rotation_degrees, expand=settings.rotation_expand))
    if settings.resize == "fixed":
        steps.append(FixedSize(settings.resize_size, keep_aspect=settings.resize_keep_aspect))
    elif settings.resize == "short_side":
        steps.append(ShortSide(settings.short_sides, settings.max_size))
    elif settings.resize == "large_scale_jitter":
        steps.append(LargeScaleJitter(settings.resize_size, settings.jitter_scales))
    elif settings.resize != "none":
        raise ValueError(f"resize is {settings.resize!r}; allowed are {', '.join(RESIZES)}")
    return Chain(steps)


class Chain:
    """Transforms one after another."""

    def __init__(self, steps: Sequence[Transform]) -> None:
        self.steps = tuple(steps)

    def __call__(self, sample: SampleDict) -> SampleDict:
        for step in self.steps:
            sample = step(sample)
        return sample


class Flip:
    """Mirrors a sample along an axis, 0 for left and right or 1 for top and bottom, with a probability.

    `order` has for each keypoint the index of the one that replaces it, see `flip_order`; None keeps them.
    """

    def __init__(self, probability: float, *, axis: int, order: Sequence[int] | None = None) -> None:
        self.probability = probability
        self.axis = axis
        self.order = slice(None) if order is None else list(order)

    def __call__(self, sample: SampleDict) -> SampleDict:
        if not happens(self.probability):
            return sample
        flip = F.vertical_flip if self.axis else F.horizontal_flip
        # v2 mirrors keypoints as pixel indices (W - 1 - x) but scales and rotates them as points, which ours are.
        flipped = {
            name: flip(value)
            if isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.KeyPoints)
            else value
            for name, value in sample.items()
        }
        if isinstance(keypoints := sample.get("keypoints"), tv_tensors.KeyPoints):
            points = keypoints.as_subclass(Tensor).clone()
            points[..., self.axis] = keypoints.canvas_size[1 - self.axis] - points[..., self.axis]
            flipped["keypoints"] = tv_tensors.wrap(points[:, self.order], like=keypoints)
            flipped["visibility"] = sample["visibility"][:, self.order]
        return flipped


class ColourJitter:
    """Random changes of brightness, contrast, saturation and hue; of more than three channels, the first three."""

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self.jitter = v2.ColorJitter(brightness, contrast, saturation, hue)

    def __call__(self, sample: SampleDict) -> SampleDict:
        photo = sample["image"].as_subclass(Tensor)
        if photo.shape[0] == 2:
            raise ValueError("colour jitter needs an image of 1, 3 or more channels, not 2")
        changed = self.jitter(tv_tensors.Image(photo[:3])).as_subclass(Tensor)
        return {**sample, "image": tv_tensors.Image(torch.cat([changed, photo[3:]]))}


def flip_order(keypoint_names: Sequence[str]) -> list[int]:
    """For each keypoint the index of the one that replaces it in a mirror image: left_x for right_x and back."""
    names = list(keypoint_names)
    order = []
    for index, name in enumerate(names):
        mirrored = name.replace("left", "right") if "left" in name else name.replace("right", "left")
        order.append(names.index(mirrored) if mirrored in names else index)
    return order
