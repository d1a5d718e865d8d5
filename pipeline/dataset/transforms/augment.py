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
        steps.append(HorizontalFlip(settings.horizontal_flip, keypoint_names))
    if settings.vertical_flip:
        steps.append(VerticalFlip(settings.vertical_flip))
    if settings.rotation and settings.rotation_degrees:
        steps.append(Sometimes(settings.rotation, Rotation(settings.rotation_degrees, expand=settings.rotation_expand)))
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


class Sometimes:
    """Applies a transform with a probability."""

    def __init__(self, probability: float, step: Transform) -> None:
        self.probability = _probability("rotation", probability)
        self.step = step

    def __call__(self, sample: SampleDict) -> SampleDict:
        return self.step(sample) if happens(self.probability) else sample


class HorizontalFlip:
    """Mirrors left and right with a probability; left and right keypoints, such as hands, are exchanged."""

    def __init__(self, probability: float, keypoint_names: Sequence[str] = ()) -> None:
        self.probability = _probability("horizontal_flip", probability)
        self.order = flip_order(keypoint_names)

    def __call__(self, sample: SampleDict) -> SampleDict:
        if not happens(self.probability):
            return sample
        flipped = {name: F.horizontal_flip(v) if _is_mirrored_by_v2(v) else v for name, v in sample.items()}
        if "keypoints" in sample:
            flipped["keypoints"] = _mirrored(sample["keypoints"], axis=0)[:, self.order]
            flipped["visibility"] = sample["visibility"][:, self.order]
        return _wrapped(flipped, sample)


class VerticalFlip:
    """Mirrors top and bottom with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = _probability("vertical_flip", probability)

    def __call__(self, sample: SampleDict) -> SampleDict:
        if not happens(self.probability):
            return sample
        flipped = {name: F.vertical_flip(v) if _is_mirrored_by_v2(v) else v for name, v in sample.items()}
        if "keypoints" in sample:
            flipped["keypoints"] = _mirrored(sample["keypoints"], axis=1)
        return _wrapped(flipped, sample)


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
        if "left" in name:
            mirrored = name.replace("left", "right")
        else:
            mirrored = name.replace("right", "left")
        order.append(names.index(mirrored) if mirrored in names else index)
    return order


def _is_mirrored_by_v2(value: object) -> bool:
    # v2 mirrors keypoints as pixel indices (W - 1 - x) but scales and rotates them as points, which ours are.
    return isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.KeyPoints)


def _mirrored(points: tv_tensors.KeyPoints, *, axis: int) -> Tensor:
    mirrored = points.as_subclass(Tensor).clone()
    mirrored[..., axis] = points.canvas_size[1 - axis] - mirrored[..., axis]
    return mirrored


def _wrapped(flipped: SampleDict, sample: SampleDict) -> SampleDict:
    if "keypoints" in flipped:
        flipped["keypoints"] = tv_tensors.wrap(flipped["keypoints"], like=sample["keypoints"])
    return flipped


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; allowed is a probability from 0 to 1")
    return float(value)
