"""Resizing, cropping and rotation move photo, masks, boxes and keypoints together, to the pixel."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from pipeline.dataset.sample import to_target
from pipeline.dataset.transforms.geometry import (
    FixedSize,
    LargeScaleJitter,
    ShortSide,
    crop_sample,
    mask_boxes,
    resize_sample,
    rotate_sample,
)
from tests.pipeline.dataset.transforms.marked_sample import marked_sample


@pytest.mark.parametrize("scale", [2, 3])
def test_enlarging_by_a_whole_number_repeats_every_pixel(scale: int) -> None:
    sample = marked_sample()
    large = resize_sample(sample, (40 * scale, 60 * scale))
    masks = sample["masks"].as_subclass(torch.Tensor)
    repeated = masks.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    assert torch.equal(large["masks"].as_subclass(torch.Tensor), repeated)
    assert torch.equal(large["boxes"].as_subclass(torch.Tensor), mask_boxes(repeated))
    assert torch.equal(large["ignore_boxes"], sample["ignore_boxes"] * scale)
    # The keypoint stays in the centre of its enlarged pixel.
    assert to_target(large)["keypoints"][0, 0].tolist() == [6.5 * scale - 0.5, 8.5 * scale - 0.5, 2.0]


@pytest.mark.parametrize("size", [(20, 30), (53, 71), (31, 97)])
def test_masks_stay_in_register_with_the_photo(size: tuple[int, int]) -> None:
    resized = resize_sample(marked_sample(), size)
    photo = resized["image"].as_subclass(torch.Tensor)[0].float()
    # Where the photo is clearly white, the mask must be.
    mask = resized["masks"].as_subclass(torch.Tensor)[0].bool()
    assert not ((photo > 192) & ~mask).any()
    expected_x = torch.tensor([6 * size[1] / 60, 30 * size[1] / 60])
    assert torch.allclose(resized["boxes"].as_subclass(torch.Tensor)[0, [0, 2]], expected_x)
    assert (mask_boxes(mask[None]) - resized["boxes"].as_subclass(torch.Tensor)[:1]).abs().max() <= 1


def test_a_crop_fits_boxes_to_the_rest_of_the_mask() -> None:
    cropped = crop_sample(marked_sample(), 22, 4, (18, 30))
    target = to_target(cropped)
    assert target["boxes"].tolist() == [[2.0, 2.0, 26.0, 8.0]]  # the upper part and the grey object are gone
    assert target["labels"].tolist() == [1]
    assert target["ignore_boxes"].tolist() == []
    assert target["keypoints"][0].tolist() == [[0.0, 0.0, 0.0], [3.0, 5.0, 2.0], [25.0, 5.0, 1.0]]


def test_padding_does_not_change_boxes() -> None:
    sample = marked_sample()
    sample["boxes"] = tv_tensors.wrap(sample["boxes"].as_subclass(torch.Tensor) + 0.25, like=sample["boxes"])
    padded = crop_sample(sample, 0, 0, (50, 80))
    assert padded["image"].shape == (3, 50, 80)
    assert torch.equal(padded["boxes"].as_subclass(torch.Tensor), sample["boxes"].as_subclass(torch.Tensor))
    assert padded["image"][:, 40:].sum() == padded["image"][:, :, 60:].sum() == padded["masks"][:, :, 60:].sum() == 0


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_rotation_by_quarter_turns_moves_pixels_one_to_one(degrees: float) -> None:
    sample = marked_sample(40, 40)
    turned = rotate_sample(sample, degrees)
    quarters = int(degrees // 90)
    for name in ("image", "masks"):
        expected = torch.rot90(sample[name].as_subclass(torch.Tensor), quarters, dims=(-2, -1))
        assert torch.equal(turned[name].as_subclass(torch.Tensor), expected)
    assert torch.equal(turned["boxes"].as_subclass(torch.Tensor), mask_boxes(turned["masks"]))
    # A single marked pixel of a rotated image is where its keypoint is.
    marked = torch.zeros(40, 40)
    marked[27, 7] = 1
    row, column = torch.rot90(marked, quarters).nonzero()[0].tolist()
    assert torch.allclose(to_target(turned)["keypoints"][0, 1], torch.tensor([column, row, 2.0]), atol=1e-3)


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("degrees", [17.0, -33.0])
def test_rotation_by_any_angle_keeps_keypoints_on_their_object(degrees: float, expand: bool) -> None:
    turned = rotate_sample(marked_sample(), degrees, expand=expand)
    target = to_target(turned)
    height, width = turned["image"].shape[-2:]
    if expand:
        assert height > 40 and width > 40
    assert torch.equal(target["boxes"], mask_boxes(target["masks"]))
    mask = target["masks"][0]
    for x, y, visibility in target["keypoints"][0].tolist():
        if visibility:
            around = mask[max(int(y) - 1, 0) : int(y) + 3, max(int(x) - 1, 0) : int(x) + 3]
            assert around.any()
    photo = turned["image"].as_subclass(torch.Tensor)[0]
    assert not ((photo > 200) & (mask == 0)).any()
    x1, y1, x2, y2 = turned["ignore_boxes"][0].tolist()
    grey_x1, grey_y1, grey_x2, grey_y2 = target["boxes"][1].tolist()  # the crowd region is over the grey object
    assert x1 <= grey_x1 + 1 and y1 <= grey_y1 + 1 and x2 >= grey_x2 - 1 and y2 >= grey_y2 - 1


def test_fixed_size_stretches_or_pads() -> None:
    stretched = FixedSize((64, 64))(marked_sample())
    assert stretched["image"].shape == (3, 64, 64)
    assert stretched["boxes"][1].tolist() == pytest.approx([44 * 64 / 60, 16.0, 64.0, 54.4], abs=1e-4)
    padded = FixedSize((64, 64), keep_aspect=True)(marked_sample())
    assert padded["image"].shape == (3, 64, 64)
    assert padded["image"][:, 43:].sum() == 0  # 40 rows become 43
    assert padded["boxes"][1, 2] == 64


def test_short_side_draws_its_length_and_keeps_the_long_one_in_bounds() -> None:
    torch.manual_seed(0)
    sizes = {tuple(ShortSide((20, 80), 120)(marked_sample())["image"].shape[-2:]) for _ in range(20)}
    assert sizes == {(20, 30), (80, 120)}
    assert ShortSide((80,), 90)(marked_sample())["image"].shape[-2:] == (60, 90)


def test_large_scale_jitter_gives_one_size_and_keeps_register() -> None:
    torch.manual_seed(1)
    jitter = LargeScaleJitter((48, 48), (0.3, 3.0))
    num_visible = 0
    for _ in range(30):
        sample = jitter(marked_sample())
        assert sample["image"].shape == (3, 48, 48) and sample["masks"].shape[1:] == (48, 48)
        target = to_target(sample)
        photo = sample["image"].as_subclass(torch.Tensor)[0]
        first = target["masks"][target["labels"] == 1]
        white = (photo > 200) if not len(first) else (photo > 200) & (first[0] == 0)
        assert not white.any()
        num_visible += len(first)
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= 48).all()
    assert 0 < num_visible < 31
