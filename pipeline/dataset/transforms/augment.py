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

RESIZES = ("none", "fixed", "short_side", "large_scale_jitter")


def build_transforms(
    *,
    horizontal_flip: float = 0.0,
    vertical_flip: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    rotation: float = 0.0,
    rotation_degrees: float = 0.0,
    rotation_expand: bool = False,
    resize: str = "none",
    resize_size: tuple[int, int] = (512, 512),
    resize_keep_aspect: bool = False,
    short_sides: Sequence[int] = (800,),
    max_size: int = 1333,
    jitter_scales: tuple[float, float] = (0.1, 2.0),
    keypoint_names: Sequence[str] = (),
) -> Transform:
    """One transform of all that are wanted, in this order: colour, flips, rotation, resizing; by default none.

    Args:
        horizontal_flip, vertical_flip: probabilities.
        brightness, contrast, saturation: each is multiplied by a factor from 1 - value to 1 + value.
        hue: is shifted by -value to value of the whole colour circle, at most 0.5.
        rotation: probability of a rotation.
        rotation_degrees: the angle is drawn from -rotation_degrees to rotation_degrees.
        rotation_expand: grow the canvas instead of cutting the corners off.
        resize: "none"; "fixed" to `resize_size`, stretched, or padded with `resize_keep_aspect`; "short_side" to one of
            `short_sides` (several are multi-scale training) with at most `max_size` on the long side;
            "large_scale_jitter" by `jitter_scales` around `resize_size`, then a window of that size.
        keypoint_names: of the data set; a horizontal flip exchanges left and right ones.

    Raises:
        ValueError: a value out of range.
    """
    steps: list[Transform] = []
    if brightness or contrast or saturation or hue:
        steps.append(ColourJitter(brightness, contrast, saturation, hue))
    if horizontal_flip:
        steps.append(HorizontalFlip(horizontal_flip, keypoint_names))
    if vertical_flip:
        steps.append(VerticalFlip(vertical_flip))
    if rotation and rotation_degrees:
        steps.append(Sometimes(rotation, Rotation(rotation_degrees, expand=rotation_expand)))
    if resize == "fixed":
        steps.append(FixedSize(resize_size, keep_aspect=resize_keep_aspect))
    elif resize == "short_side":
        steps.append(ShortSide(short_sides, max_size))
    elif resize == "large_scale_jitter":
        steps.append(LargeScaleJitter(resize_size, jitter_scales))
    elif resize != "none":
        raise ValueError(f"resize is {resize!r}; allowed are {', '.join(RESIZES)}")
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
