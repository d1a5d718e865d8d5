"""Samples equal the annotations, repeat with their seed, and come once in every epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset.loader import SampleSet, sample_at, sample_seed
from pipeline.dataset.photos import UnusablePhoto
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Instance, mask_to_instance
from pipeline.storage.files import Location


def test_a_sample_has_the_annotated_objects(awkward_set: AnnotatedSet) -> None:
    samples = SampleSet(awkward_set)
    image = awkward_set.images[0]
    sample = samples.load_sample(0, 0)
    pixels, target = sample.image, sample.target
    assert pixels.dtype == torch.float32 and pixels.shape == (3, image.height, image.width)
    assert 0 <= pixels.min() and pixels.max() <= 1
    assert target["labels"].tolist() == [i.label for i in image.instances]
    for mask, box, instance in zip(target["masks"], target["boxes"], image.instances):
        assert np.array_equal(mask.numpy(), instance.mask(image.height, image.width))
        assert tuple(box.tolist()) == instance.box
    kinds = {name: (value.dtype, value.ndim) for name, value in target.items()}
    assert kinds == {
        "boxes": (torch.float32, 2),
        "labels": (torch.int64, 1),
        "masks": (torch.uint8, 3),
        "ignore_boxes": (torch.float32, 2),
    }


def test_negatives_have_no_objects_and_crowds_are_ignored(awkward_set: AnnotatedSet) -> None:
    samples = SampleSet(awkward_set)
    image = awkward_set.images[3]
    target = samples.load_sample(0, 3).target
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, image.height, image.width)
    assert target["ignore_boxes"].shape == (0, 4)

    image = awkward_set.images[2]
    target = samples.load_sample(0, 2).target
    assert [tuple(box) for box in target["ignore_boxes"].tolist()] == [image.instances[0].box]
    assert len(target["labels"]) == len(image.instances) - 1

    no_mask = Instance(1, (3.0, 4.0, 20.0, 30.0), [])
    no_box = Instance(1, (3.0, 4.0, 3.0, 30.0), [])
    changed = replace(awkward_set.images[3], instances=(no_mask, no_box))
    target = SampleSet(replace(awkward_set, images=(changed,))).load_sample(0, 0).target
    assert target["labels"].tolist() == [] and target["ignore_boxes"].tolist() == [[3.0, 4.0, 20.0, 30.0]]


def test_targets_have_labelled_classes_and_keep_objects_of_other_classes(awkward_set: AnnotatedSet) -> None:
    image = replace(awkward_set.images[1], labelled_classes=(1, 3))  # its objects are of the classes 2 and 3
    target = SampleSet(replace(awkward_set, images=(image,))).load_sample(0, 0).target
    assert target["labelled_classes"].tolist() == [1, 3]
    assert target["labels"].tolist() == [2, 3] and len(target["ignore_boxes"]) == 0
    assert "labelled_classes" not in SampleSet(awkward_set).load_sample(0, 0).target


def test_random_changes_depend_on_seed_epoch_and_index_alone(awkward_set: AnnotatedSet) -> None:
    transforms = build_transforms(
        Augmentation(horizontal_flip=0.5, brightness=0.5, resize="large_scale_jitter", resize_size=(40, 40))
    )

    def pixels_of(key: tuple[int, int], seed: int = 7) -> torch.Tensor:
        return SampleSet(awkward_set, transforms, seed=seed, copy_paste=0.5)[key].image

    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = pixels_of((2, 1))
    assert torch.equal(torch.get_rng_state(), before)  # the training's own random state is unchanged
    torch.manual_seed(5)
    assert torch.equal(first, pixels_of((2, 1)))
    assert not torch.equal(first, pixels_of((3, 1)))
    assert not torch.equal(first, pixels_of((2, 1), seed=8))
    seeds = {sample_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(50)}
    assert len(seeds) == 5 * 5 * 50


@pytest.fixture
def broken_set(awkward_set: AnnotatedSet, tmp_path: Path) -> AnnotatedSet:
    """Photos 0, 1 and 3 of five can be used; the file of 2 is truncated, that of 4 is absent."""
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(awkward_set.images[2].path.read_bytes()[:900])
    images = list(awkward_set.images)
    images[2] = replace(images[2], path=Location(str(truncated)))
    images[4] = replace(images[4], path=Location(str(tmp_path / "absent.png")))
    return replace(awkward_set, images=tuple(images))


def test_an_unusable_photo_is_logged_and_replaced_by_the_next_one(broken_set: AnnotatedSet, caplog) -> None:
    samples = SampleSet(broken_set)
    sample = samples.load_sample(0, 2)
    assert (sample.index, sample.image_id) == (3, 4)
    assert list(sample.skipped) == [3] and "unreadable" in sample.skipped[3]
    after_last = samples.load_sample(0, 4)  # the first follows the last
    assert after_last.index == 0 and "no such file" in after_last.skipped[5]
    samples.load_sample(1, 4)
    assert sum("absent.png" in record.getMessage() for record in caplog.records) == 1
    assert samples.load_sample(0, 0).skipped == {}


def test_broken_annotations_do_not_stop_the_training(awkward_set: AnnotatedSet) -> None:
    image = awkward_set.images[0]
    malformed = replace(image.instances[0], segmentation={"size": [image.height, image.width], "counts": "~~~"})
    images = (replace(image, instances=(malformed,)), awkward_set.images[1])
    sample = SampleSet(replace(awkward_set, images=images)).load_sample(0, 0)
    assert sample.index == 1 and "annotations cannot be used" in sample.skipped[image.image_id]


def test_a_set_without_a_usable_photo_is_refused(awkward_set: AnnotatedSet) -> None:
    images = tuple(replace(image, path=Location("/nowhere/x.png")) for image in awkward_set.images)
    with pytest.raises(UnusablePhoto, match="none of the 5 photos"):
        SampleSet(replace(awkward_set, images=images)).load_sample(0, 0)
    with pytest.raises(AnnotationError, match="no images"):
        SampleSet(AnnotatedSet((), SHAPE_CATEGORIES))


def test_an_unusable_donor_leaves_the_sample_as_it_is(broken_set: AnnotatedSet) -> None:
    samples, plain = SampleSet(broken_set, copy_paste=1.0), SampleSet(broken_set)
    num_pasted = num_unchanged = 0
    for epoch in range(12):
        num_before, num_after = (len(s[(epoch, 0)].target["labels"]) for s in (plain, samples))
        num_pasted += num_after > num_before
        num_unchanged += num_after == num_before
    assert num_pasted and num_unchanged


@pytest.mark.parametrize(
    ("stored", "orientation", "annotated", "exif"),
    [
        ((30, 50), 6, (50, 30), 1),  # applied: annotated as seen
        ((30, 50), 6, (30, 50), 2),  # annotations fit only the photo as stored
        ((30, 50), 3, (30, 50), 1),  # upside down: both fit, it is applied
        ((40, 40), 8, (40, 40), 1),
        ((30, 50), 1, (30, 50), 0),
        ((30, 50), None, (30, 50), 0),
    ],
)
def test_exif_orientation_is_applied_where_the_annotations_need_it(
    tmp_path: Path,
    write_photo: Callable[..., np.ndarray],
    stored: tuple[int, int],
    orientation: int | None,
    annotated: tuple[int, int],
    exif: int,
) -> None:
    pixels = write_photo(tmp_path / "x.png", *stored, orientation=orientation)
    image = AnnotatedImage(1, "x.png", Location(str(tmp_path / "x.png")), *annotated)
    sample = SampleSet(AnnotatedSet((image,), SHAPE_CATEGORIES)).load_sample(0, 0)
    quarters = {6: -1, 8: 1, 3: 2}.get(orientation or 1, 0) if exif == 1 else 0
    expected = torch.from_numpy(np.rot90(pixels, quarters).copy()).permute(2, 0, 1) / 255
    assert torch.equal(sample.image, expected)
    assert sample.exif == exif


def test_another_size_than_annotated_is_refused(tmp_path: Path, write_photo: Callable[..., np.ndarray]) -> None:
    write_photo(tmp_path / "x.png", 30, 50, orientation=6)
    image = AnnotatedImage(1, "x.png", Location(str(tmp_path / "x.png")), 60, 100)
    with pytest.raises(UnusablePhoto, match=r"30 x 50 px \(H x W\), but annotated as 60 x 100"):
        SampleSet(AnnotatedSet((image,), SHAPE_CATEGORIES)).load_sample(0, 0)


def test_every_epoch_has_every_sample_once_in_another_order() -> None:
    epochs = [[sample_at(e * 7 + place, num_samples=7, seed=3) for place in range(7)] for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(number, index) for index in range(7)]
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) == 3


def test_copy_paste_adds_objects_with_right_masks(awkward_set: AnnotatedSet) -> None:
    image, donor = awkward_set.images[3], awkward_set.images[0]  # the first one has no objects
    square = np.zeros((donor.height, donor.width), dtype=bool)
    square[10:20, 10:20] = True
    donor = replace(donor, instances=(mask_to_instance(2, square),))
    samples = SampleSet(replace(awkward_set, images=(image, donor)), copy_paste=1.0)
    counts = Counter(len(samples[(epoch, 0)].target["labels"]) for epoch in range(30))
    assert set(counts) == {0, 1}
    pasted = next(t for t in (samples[(e, 0)].target for e in range(30)) if len(t["labels"]))
    assert pasted["boxes"].tolist() == [[10.0, 10.0, 20.0, 20.0]] and pasted["masks"].sum() == 100
