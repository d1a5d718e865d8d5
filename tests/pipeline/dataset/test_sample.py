"""Samples: what annotations become for the transforms, what is left for the loss, and the seeded random draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torchvision import tv_tensors

from pipeline.dataset.sample import draw, draw_index, happens, size_of, to_sample_dict, to_target
from pipeline.dataset.types import AnnotatedImage, Instance, mask_to_instance
from pipeline.storage.files import Location

HEIGHT, WIDTH = 12, 16


def rectangle(label: int, top: int, left: int, bottom: int, right: int, *, iscrowd: bool = False) -> Instance:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask_to_instance(label, mask, iscrowd=iscrowd)


def annotated(*instances: Instance) -> AnnotatedImage:
    return AnnotatedImage(1, "a.png", Location("a.png"), HEIGHT, WIDTH, instances)


def photo(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def test_objects_become_labels_boxes_and_masks_and_crowds_become_ignore_boxes() -> None:
    instance, crowd = rectangle(2, 3, 4, 7, 10), rectangle(1, 0, 0, 2, 5, iscrowd=True)
    pixels = photo()
    sample = to_sample_dict(annotated(instance, crowd), pixels)
    assert size_of(sample) == (HEIGHT, WIDTH)
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)
    assert sample["labels"].tolist() == [2]
    assert sample["boxes"].tolist() == [[4.0, 3.0, 10.0, 7.0]]
    assert sample["ignore_boxes"].tolist() == [[0.0, 0.0, 5.0, 2.0]]
    assert np.array_equal(sample["masks"][0].numpy(), instance.mask(HEIGHT, WIDTH))
    assert "keypoints" not in sample


def test_an_object_without_a_mask_is_ignored_and_one_without_a_box_has_that_of_its_mask() -> None:
    no_mask = Instance(1, (3.0, 4.0, 9.0, 10.0), [])
    no_box = Instance(2, (3.0, 4.0, 3.0, 10.0), [[3, 4, 9, 4, 9, 10, 3, 10]])
    neither = Instance(3, (3.0, 4.0, 3.0, 10.0), [])
    sample = to_sample_dict(annotated(no_mask, no_box, neither), photo())
    assert sample["labels"].tolist() == [2] and sample["boxes"].tolist() == [[3.0, 4.0, 9.0, 10.0]]
    assert sample["ignore_boxes"].tolist() == [[3.0, 4.0, 9.0, 10.0]]


def test_keypoints_are_held_at_pixel_centres_and_returned_as_pixel_indices() -> None:
    with_points = replace(rectangle(1, 0, 0, 12, 16), keypoints=(2.0, 3.0, 2.0, 0.0, 0.0, 0.0))
    without_points = rectangle(1, 4, 4, 8, 8)
    sample = to_sample_dict(annotated(with_points, without_points), photo(), ("nose", "tail"))
    assert sample["keypoints"][0, 0].tolist() == [2.5, 3.5]
    assert sample["visibility"].tolist() == [[2.0, 0.0], [0.0, 0.0]]
    target = to_target(sample)
    assert target["keypoints"].tolist() == [[[2.0, 3.0, 2.0], [0.0] * 3], [[0.0] * 3] * 2]
    sample["keypoints"] = tv_tensors.wrap(sample["keypoints"] - 3.0, like=sample["keypoints"])
    assert to_target(sample)["keypoints"][0, 0].tolist() == [0.0, 0.0, 0.0]  # it has left the image


def test_a_target_drops_objects_that_lost_their_mask_or_box_and_clips_the_others() -> None:
    sample = to_sample_dict(annotated(*(rectangle(n, 2, 2, 6, 6) for n in (1, 2, 3))), photo())
    sample["masks"][0] = 0
    shifts = torch.tensor([[0.0], [-20.0], [8.0]])
    sample["boxes"] = tv_tensors.wrap(sample["boxes"].as_subclass(torch.Tensor) + shifts, like=sample["boxes"])
    target = to_target(sample)
    assert target["labels"].tolist() == [3]
    assert target["boxes"].tolist() == [[10.0, 10.0, 14.0, 12.0]]  # cut at the lower border
    assert target["masks"].sum() == 16
    assert target["masks"].shape == (1, HEIGHT, WIDTH)


def test_draws_follow_torchs_seed_and_stay_in_their_range() -> None:
    def draws() -> list[tuple[bool, float, int]]:
        torch.manual_seed(4)
        return [(happens(0.25), draw(-2.0, 3.0), draw_index(3)) for _ in range(2000)]

    first = draws()
    assert first == draws()
    assert abs(sum(hit for hit, _, _ in first) / 2000 - 0.25) < 0.04  # four standard deviations
    numbers = [number for _, number, _ in first]
    assert -2 <= min(numbers) < -1.9 and 2.9 < max(numbers) <= 3
    assert {index for _, _, index in first} == {0, 1, 2}
    assert happens(1.0) and not happens(0.0)
