"""Photo, masks, boxes and keypoints move together, to the pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from pipeline.dataset.sample import SampleDict, to_sample_dict, to_target
from pipeline.dataset.transforms.augment import Chain, HorizontalFlip, VerticalFlip, build_transforms, flip_order
from pipeline.dataset.transforms.copy_paste import paste_objects
from pipeline.dataset.transforms.geometry import (
    FixedSize,
    LargeScaleJitter,
    ShortSide,
    crop_sample,
    mask_boxes,
    resize_sample,
    rotate_sample,
)
from pipeline.dataset.types import AnnotatedImage, mask_to_instance

NAMES = ("nose", "left_hand", "right_hand")


def make_sample(height: int = 40, width: int = 60, *, in_channels: int = 3) -> SampleDict:
    """Black, with a white object in two parts and a grey one at the right border; a keypoint on a pixel of each part.

    So the mask of the white object is where the photo is white, and a keypoint is on a pixel of known colour.
    """
    white = np.zeros((height, width), dtype=np.uint8)
    white[8:20, 6:16] = white[24:30, 6:30] = 1
    grey = np.zeros_like(white)
    grey[10:34, 44:width] = 1
    pixels = np.zeros((height, width, in_channels), dtype=np.uint8)
    pixels[white != 0], pixels[grey != 0] = 255, 128
    first, second = mask_to_instance(1, white), mask_to_instance(2, grey)
    first = replace(first, keypoints=(6.0, 8.0, 2.0, 7.0, 27.0, 2.0, 29.0, 27.0, 1.0))
    crowd = replace(mask_to_instance(1, grey), iscrowd=True)
    image = AnnotatedImage(1, "x", "x", height, width, (first, second, crowd))
    return to_sample_dict(image, pixels, NAMES)


def test_a_flip_mirrors_everything_exactly() -> None:
    sample = make_sample()
    flipped = HorizontalFlip(1.0, NAMES)(sample)
    for name in ("image", "masks"):
        assert torch.equal(flipped[name].as_subclass(torch.Tensor), sample[name].as_subclass(torch.Tensor).flip(-1))
    assert torch.equal(flipped["boxes"].as_subclass(torch.Tensor), mask_boxes(flipped["masks"]))
    assert flipped["ignore_boxes"].tolist() == [[0.0, 10.0, 16.0, 34.0]]
    keypoints = to_target(flipped)["keypoints"][0]
    # Pixel x becomes pixel W - 1 - x; left and right change places, with their visibility.
    assert keypoints.tolist() == [[53.0, 8.0, 2.0], [30.0, 27.0, 1.0], [52.0, 27.0, 2.0]]
    twice = HorizontalFlip(1.0, NAMES)(flipped)
    assert torch.equal(to_target(twice)["keypoints"], to_target(sample)["keypoints"])
    assert torch.equal(twice["visibility"], sample["visibility"])


def test_a_vertical_flip_mirrors_everything_exactly() -> None:
    sample = make_sample()
    flipped = VerticalFlip(1.0)(sample)
    assert torch.equal(flipped["masks"].as_subclass(torch.Tensor), sample["masks"].as_subclass(torch.Tensor).flip(-2))
    assert torch.equal(flipped["boxes"].as_subclass(torch.Tensor), mask_boxes(flipped["masks"]))
    assert to_target(flipped)["keypoints"][0].tolist() == [[6.0, 31.0, 2.0], [7.0, 12.0, 2.0], [29.0, 12.0, 1.0]]


def test_left_and_right_are_found_by_name() -> None:
    assert flip_order(["nose", "left_eye", "right_eye", "tail", "upright"]) == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("scale", [2, 3])
def test_enlarging_by_a_whole_number_repeats_every_pixel(scale: int) -> None:
    sample = make_sample()
    large = resize_sample(sample, (40 * scale, 60 * scale))
    masks = sample["masks"].as_subclass(torch.Tensor)
    repeated = masks.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    assert torch.equal(large["masks"].as_subclass(torch.Tensor), repeated)
    assert torch.equal(large["boxes"].as_subclass(torch.Tensor), mask_boxes(repeated))
    assert torch.equal(large["ignore_boxes"], sample["ignore_boxes"] * scale)
    # The keypoint stays in the middle of what its pixel became.
    assert to_target(large)["keypoints"][0, 0].tolist() == [6.5 * scale - 0.5, 8.5 * scale - 0.5, 2.0]


@pytest.mark.parametrize("size", [(20, 30), (53, 71), (31, 97)])
def test_masks_stay_in_register_with_the_photo(size: tuple[int, int]) -> None:
    resized = resize_sample(make_sample(), size)
    photo = resized["image"].as_subclass(torch.Tensor)[0].float()
    # Where the photo is more than half white, the mask must be, give or take the pixels that lie on the very border.
    mask = resized["masks"].as_subclass(torch.Tensor)[0].bool()
    off = (photo > 192) & ~mask
    assert not off.any()
    expected_x = torch.tensor([6 * size[1] / 60, 30 * size[1] / 60])
    assert torch.allclose(resized["boxes"].as_subclass(torch.Tensor)[0, [0, 2]], expected_x)
    assert (mask_boxes(mask[None]) - resized["boxes"].as_subclass(torch.Tensor)[:1]).abs().max() <= 1


def test_a_crop_cuts_boxes_to_what_is_left_of_the_mask() -> None:
    cropped = crop_sample(make_sample(), 22, 4, (18, 30))
    target = to_target(cropped)
    assert target["boxes"].tolist() == [[2.0, 2.0, 26.0, 8.0]]  # the upper part and the grey object are gone
    assert target["labels"].tolist() == [1]
    assert target["ignore_boxes"].tolist() == []
    assert target["keypoints"][0].tolist() == [[0.0, 0.0, 0.0], [3.0, 5.0, 2.0], [25.0, 5.0, 1.0]]


def test_padding_leaves_boxes_alone() -> None:
    sample = make_sample()
    sample["boxes"] = tv_tensors.wrap(sample["boxes"].as_subclass(torch.Tensor) + 0.25, like=sample["boxes"])
    padded = crop_sample(sample, 0, 0, (50, 80))
    assert padded["image"].shape == (3, 50, 80)
    assert torch.equal(padded["boxes"].as_subclass(torch.Tensor), sample["boxes"].as_subclass(torch.Tensor))
    assert padded["image"][:, 40:].sum() == padded["image"][:, :, 60:].sum() == padded["masks"][:, :, 60:].sum() == 0


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_a_quarter_turn_moves_pixels_one_to_one(degrees: float) -> None:
    sample = make_sample(40, 40)
    turned = rotate_sample(sample, degrees)
    quarters = int(degrees // 90)
    for name in ("image", "masks"):
        expected = torch.rot90(sample[name].as_subclass(torch.Tensor), quarters, dims=(-2, -1))
        assert torch.equal(turned[name].as_subclass(torch.Tensor), expected)
    assert torch.equal(turned["boxes"].as_subclass(torch.Tensor), mask_boxes(turned["masks"]))
    # A single marked pixel, turned as a picture, is where its keypoint is.
    marked = torch.zeros(40, 40)
    marked[27, 7] = 1
    row, column = torch.rot90(marked, quarters).nonzero()[0].tolist()
    assert torch.allclose(to_target(turned)["keypoints"][0, 1], torch.tensor([column, row, 2.0]), atol=1e-3)


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("degrees", [17.0, -33.0])
def test_an_odd_turn_keeps_keypoints_on_their_object(degrees: float, expand: bool) -> None:
    turned = rotate_sample(make_sample(), degrees, expand=expand)
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
    gx1, gy1, gx2, gy2 = target["boxes"][1].tolist()  # the same object: its region must cover it
    assert x1 <= gx1 + 1 and y1 <= gy1 + 1 and x2 >= gx2 - 1 and y2 >= gy2 - 1


def test_fixed_size_stretches_or_pads() -> None:
    stretched = FixedSize((64, 64))(make_sample())
    assert stretched["image"].shape == (3, 64, 64)
    assert stretched["boxes"][1].tolist() == pytest.approx([44 * 64 / 60, 16.0, 64.0, 54.4], abs=1e-4)
    padded = FixedSize((64, 64), keep_aspect=True)(make_sample())
    assert padded["image"].shape == (3, 64, 64)
    assert padded["image"][:, 43:].sum() == 0  # 40 rows become 43
    assert padded["boxes"][1, 2] == 64


def test_short_side_draws_its_length_and_keeps_the_long_one_in_bounds() -> None:
    torch.manual_seed(0)
    sizes = {tuple(ShortSide((20, 80), 120)(make_sample())["image"].shape[-2:]) for _ in range(20)}
    assert sizes == {(20, 30), (80, 120)}
    assert ShortSide((80,), 90)(make_sample())["image"].shape[-2:] == (60, 90)


def test_large_scale_jitter_gives_one_size_and_keeps_register() -> None:
    torch.manual_seed(1)
    jitter = LargeScaleJitter((48, 48), (0.3, 3.0))
    kept = 0
    for _ in range(30):
        sample = jitter(make_sample())
        assert sample["image"].shape == (3, 48, 48) and sample["masks"].shape[1:] == (48, 48)
        target = to_target(sample)
        photo = sample["image"].as_subclass(torch.Tensor)[0]
        first = target["masks"][target["labels"] == 1]
        white = (photo > 200) if not len(first) else (photo > 200) & (first[0] == 0)
        assert not white.any()
        kept += len(first)
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= 48).all()
    assert 0 < kept < 31


def test_colour_changes_the_first_three_channels_only() -> None:
    sample = make_sample(in_channels=5)
    torch.manual_seed(0)
    changed = build_transforms(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)(sample)
    assert not torch.equal(changed["image"][:3], sample["image"][:3])
    assert torch.equal(changed["image"][3:], sample["image"][3:])
    assert torch.equal(changed["masks"], sample["masks"])


def test_everything_at_once_stays_in_agreement() -> None:
    transform = build_transforms(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotation=0.5,
        rotation_degrees=20,
        resize="large_scale_jitter",
        resize_size=(64, 96),
        jitter_scales=(0.5, 2.0),
        keypoint_names=NAMES,
    )
    torch.manual_seed(3)
    for _ in range(30):
        sample = transform(make_sample())
        target = to_target(sample)
        photo = sample["image"].as_subclass(torch.Tensor)[0]
        first = target["masks"][target["labels"] == 1]
        white = (photo > 200) if not len(first) else (photo > 200) & (first[0] == 0)
        assert white.sum() <= 2  # nearest and bilinear may part on a corner of a turned edge
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"]) == len(target["keypoints"])


def test_no_objects_pass_through_every_transform() -> None:
    image = AnnotatedImage(1, "x", "x", 40, 60)
    sample = to_sample_dict(image, np.zeros((40, 60, 3), dtype=np.uint8), NAMES)
    for resize in ("fixed", "short_side", "large_scale_jitter"):
        transform = build_transforms(
            horizontal_flip=1,
            vertical_flip=1,
            rotation=1,
            rotation_degrees=30,
            brightness=0.2,
            resize=resize,
            resize_size=(32, 32),
            short_sides=(32,),
            keypoint_names=NAMES,
        )
        changed = transform(sample)
        target = to_target(changed)
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *changed["image"].shape[-2:])
        assert target["keypoints"].shape == (0, 3, 3)
        assert target["area"].shape == (0,)


def test_pasted_objects_cover_what_is_below() -> None:
    sample, donor = make_sample(), make_sample()
    square = np.zeros((40, 60), dtype=np.uint8)
    square[20:34, 4:50] = 1  # over the white object's lower part and a piece of the grey one
    image = AnnotatedImage(2, "y", "y", 40, 60, (mask_to_instance(3, square),))
    donor = to_sample_dict(image, np.full((40, 60, 3), 77, dtype=np.uint8), NAMES)
    torch.manual_seed(0)
    for _ in range(20):
        joined = paste_objects(sample, donor)
        if len(joined["labels"]) == 3:
            break
    assert joined["labels"].tolist() == [1, 2, 3]
    masks = joined["masks"].as_subclass(torch.Tensor)
    assert masks.sum(0).max() == 1  # nothing is in two masks
    assert torch.equal(masks[2], torch.from_numpy(square))
    assert torch.equal(joined["image"][0] == 77, torch.from_numpy(square) != 0)
    assert torch.equal(joined["boxes"].as_subclass(torch.Tensor), mask_boxes(masks))
    assert joined["visibility"].tolist()[0] == [2.0, 1.0, 1.0]  # the second keypoint is covered now
    target = to_target(joined)
    assert target["keypoints"][2].tolist() == [[0.0] * 3] * 3


def test_objects_wholly_covered_are_gone_and_unlabelled_classes_are_not_pasted() -> None:
    sample = make_sample()
    everything = np.ones((40, 60), dtype=np.uint8)
    image = AnnotatedImage(2, "y", "y", 40, 60, (mask_to_instance(3, everything),))
    donor = to_sample_dict(image, np.full((40, 60, 3), 77, dtype=np.uint8), NAMES)
    torch.manual_seed(0)
    results = [paste_objects(sample, donor) for _ in range(20)]
    pasted = [to_target(r) for r in results if len(r["labels"]) == 3]
    assert pasted and all(target["labels"].tolist() == [3] for target in pasted)
    assert all(len(paste_objects(sample, donor, labelled_classes=(1, 2))["labels"]) == 2 for _ in range(20))


def test_a_donor_of_another_size_is_cut_to_the_sample() -> None:
    sample, donor = make_sample(30, 50), make_sample(40, 60)
    torch.manual_seed(0)
    joined = paste_objects(sample, donor)
    assert joined["image"].shape == (3, 30, 50)
    assert joined["masks"].shape[1:] == (30, 50)


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
def test_values_out_of_range_are_named(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_transforms(**settings)


def test_nothing_by_default() -> None:
    transform = build_transforms()
    sample = make_sample()
    assert isinstance(transform, Chain) and transform(sample) is sample
