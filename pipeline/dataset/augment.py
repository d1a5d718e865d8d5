"""Random changes of a training sample, on torchvision.transforms.v2; photo, masks, boxes and keypoints stay
together.

A transform takes and gives a sample: a dict of `image` (tv_tensors.Image uint8 or float [C, H, W]), `boxes`
    and
`ignore_boxes` (tv_tensors.BoundingBoxes, XYXY), `labels` int64 [N], `masks` (tv_tensors.Mask uint8 [N, H, W])
and, in data with keypoints, `keypoints` (tv_tensors.KeyPoints [N, P, 2], continuous coordinates: a pixel's
centre at +0.5) and `visibility` [N, P]. All randomness comes from torch's generator, which the loader seeds
for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

SampleDict = dict[str, Any]
Transform = Callable[[SampleDict], SampleDict]


def build_transforms(
    *,
    horizontal_flip: float = 0.0,
    vertical_flip: float = 0.0,
    keypoint_names: Sequence[str] = (),
) -> Transform:
    """The transforms wanted, in order, as one; none by default.

    Args:
        horizontal_flip, vertical_flip: probabilities.
        keypoint_names: of the data set; a horizontal flip exchanges those of left and right.

    Raises:
        ValueError: a value out of range.
    """
    steps: list[Transform] = []
    if horizontal_flip:
        steps.append(HorizontalFlip(horizontal_flip, keypoint_names))
    if vertical_flip:
        steps.append(VerticalFlip(vertical_flip))
    return Chain(steps)


class Chain:
    """Transforms one after another."""

    def __init__(self, steps: Sequence[Transform]) -> None:
        self.steps = tuple(steps)

    def __call__(self, sample: SampleDict) -> SampleDict:
        for step in self.steps:
            sample = step(sample)
        return sample

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.steps))})"


class HorizontalFlip:
    """Left becomes right, with a probability; keypoints of a left and a right limb change places."""

    def __init__(self, probability: float, keypoint_names: Sequence[str] = ()) -> None:
        self.probability = _probability("horizontal_flip", probability)
        self.order = flip_order(keypoint_names)

    def __call__(self, sample: SampleDict) -> SampleDict:
        if torch.rand(()) >= self.probability:
            return sample
        flipped = {name: F.horizontal_flip(value) if _has_place(value) else value for name, value in sample.items()}
        if "keypoints" in sample:
            points = sample["keypoints"]
            moved = points.as_subclass(torch.Tensor).clone()
            moved[..., 0] = points.canvas_size[1] - moved[..., 0]
            flipped["keypoints"] = tv_tensors.wrap(moved[:, self.order], like=points)
            flipped["visibility"] = sample["visibility"][:, self.order]
        return flipped


class VerticalFlip:
    """Top becomes bottom, with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = _probability("vertical_flip", probability)

    def __call__(self, sample: SampleDict) -> SampleDict:
        if torch.rand(()) >= self.probability:
            return sample
        flipped = {name: F.vertical_flip(value) if _has_place(value) else value for name, value in sample.items()}
        if "keypoints" in sample:
            points = sample["keypoints"]
            moved = points.as_subclass(torch.Tensor).clone()
            moved[..., 1] = points.canvas_size[0] - moved[..., 1]
            flipped["keypoints"] = tv_tensors.wrap(moved, like=points)
        return flipped


def flip_order(keypoint_names: Sequence[str]) -> list[int]:
    """For each keypoint the index of the one that takes its place in the mirror: left_x for right_x and
    back.
    """
    names = list(keypoint_names)
    order = []
    for index, name in enumerate(names):
        if "left" in name:
            mirrored = name.replace("left", "right")
        else:
            mirrored = name.replace("right", "left")
        order.append(names.index(mirrored) if mirrored in names else index)
    return order


def _has_place(value: Any) -> bool:
    # v2 mirrors keypoints as pixel indices (W - 1 - x) but scales and turns them as points; we hold points.
    return isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.KeyPoints)


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; allowed is a probability from 0 to 1")
    return float(value)
