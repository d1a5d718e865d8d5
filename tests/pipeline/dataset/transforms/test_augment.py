"""Random transforms move photo, masks, boxes and keypoints together, to the pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.dataset.sample import to_sample_dict, to_target
from pipeline.dataset.transforms.augment import Chain, Flip, build_transforms, flip_order
from pipeline.dataset.transforms.geometry import mask_boxes
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.dataset.types import AnnotatedImage
from pipeline.storage.files import Location
from tests.paths import DOCS
from tests.pipeline.dataset.transforms.marked_sample import KEYPOINT_NAMES, marked_sample


def test_a_flip_mirrors_everything_exactly() -> None:
    sample = marked_sample()
    flipped = Flip(1.0, axis=0, order=flip_order(KEYPOINT_NAMES))(sample)
    for name in ("image", "masks"):
        assert torch.equal(flipped[name].as_subclass(torch.Tensor), sample[name].as_subclass(torch.Tensor).flip(-1))
    assert torch.equal(flipped["boxes"].as_subclass(torch.Tensor), mask_boxes(flipped["masks"]))
    assert flipped["ignore_boxes"].tolist() == [[0.0, 10.0, 16.0, 34.0]]
    keypoints = to_target(flipped)["keypoints"][0]
    # Pixel x becomes pixel W - 1 - x; left and right are exchanged, with their visibility.
    assert keypoints.tolist() == [[53.0, 8.0, 2.0], [30.0, 27.0, 1.0], [52.0, 27.0, 2.0]]
    twice = Flip(1.0, axis=0, order=flip_order(KEYPOINT_NAMES))(flipped)
    assert torch.equal(to_target(twice)["keypoints"], to_target(sample)["keypoints"])
    assert torch.equal(twice["visibility"], sample["visibility"])


def test_a_vertical_flip_mirrors_everything_exactly() -> None:
    sample = marked_sample()
    flipped = Flip(1.0, axis=1)(sample)
    assert torch.equal(flipped["masks"].as_subclass(torch.Tensor), sample["masks"].as_subclass(torch.Tensor).flip(-2))
    assert torch.equal(flipped["boxes"].as_subclass(torch.Tensor), mask_boxes(flipped["masks"]))
    assert to_target(flipped)["keypoints"][0].tolist() == [[6.0, 31.0, 2.0], [7.0, 12.0, 2.0], [29.0, 12.0, 1.0]]


def test_left_and_right_keypoints_are_matched_by_name() -> None:
    assert flip_order(["nose", "left_eye", "right_eye", "tail", "upright"]) == [0, 2, 1, 3, 4]


def test_colour_changes_the_first_three_channels_only() -> None:
    sample = marked_sample(in_channels=5)
    torch.manual_seed(0)
    changed = build_transforms(Augmentation(horizontal_flip=0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1))(
        sample
    )
    assert not torch.equal(changed["image"][:3], sample["image"][:3])
    assert torch.equal(changed["image"][3:], sample["image"][3:])
    assert torch.equal(changed["masks"], sample["masks"])


def test_photo_masks_and_keypoints_agree_after_all_transforms_together() -> None:
    transform = build_transforms(
        Augmentation(
            horizontal_flip=0.5,
            vertical_flip=0.5,
            rotation=0.5,
            rotation_degrees=20,
            resize="large_scale_jitter",
            resize_size=(64, 96),
            jitter_scales=(0.5, 2.0),
        ),
        KEYPOINT_NAMES,
    )
    torch.manual_seed(3)
    for _ in range(30):
        sample = transform(marked_sample())
        target = to_target(sample)
        photo = sample["image"].as_subclass(torch.Tensor)[0]
        first = target["masks"][target["labels"] == 1]
        white = (photo > 200) if not len(first) else (photo > 200) & (first[0] == 0)
        assert white.sum() <= 2  # nearest and bilinear may differ at a corner of a rotated edge
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"]) == len(target["keypoints"])


def test_no_objects_pass_through_every_transform() -> None:
    image = AnnotatedImage(1, "x", Location("x"), 40, 60)
    sample = to_sample_dict(image, np.zeros((40, 60, 3), dtype=np.uint8), KEYPOINT_NAMES)
    for resize in ("fixed", "short_side", "large_scale_jitter"):
        transform = build_transforms(
            Augmentation(
                horizontal_flip=1,
                vertical_flip=1,
                rotation=1,
                rotation_degrees=30,
                brightness=0.2,
                resize=resize,
                resize_size=(32, 32),
                short_sides=(32,),
            ),
            KEYPOINT_NAMES,
        )
        changed = transform(sample)
        target = to_target(changed)
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *changed["image"].shape[-2:])
        assert target["keypoints"].shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizontal_flip": 1.5}, "horizontal_flip is 1.5"),
        ({"resize": "square"}, "'square'; allowed are none, fixed"),
        ({"resize": "fixed", "resize_size": (0, 5)}, "resize_size"),
        ({"resize": "short_side", "short_sides": (800,), "max_size": 600}, "max_size 600"),
        ({"resize": "large_scale_jitter", "jitter_scales": (2.0, 1.0)}, "jitter_scales"),
        ({"rotation": 0.5, "rotation_degrees": 200}, "rotation_degrees is 200"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_transforms(Augmentation(**settings))


def test_the_page_on_annotations_names_every_setting() -> None:
    page = (DOCS / "annotations.md").read_text()
    settings = {field.name for field in dataclasses.fields(Augmentation)}
    assert not {name for name in settings if f"`{name}`" not in page}


def test_no_transform_by_default() -> None:
    transform = build_transforms(Augmentation(horizontal_flip=0))
    sample = marked_sample()
    assert isinstance(transform, Chain) and transform(sample) is sample
