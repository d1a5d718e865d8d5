"""Pasted objects take their pixels from the objects they cover."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.dataset.sample import to_sample_dict, to_target
from pipeline.dataset.transforms.copy_paste import paste_objects
from pipeline.dataset.transforms.geometry import mask_boxes
from pipeline.dataset.types import AnnotatedImage, mask_to_instance
from pipeline.storage.files import Location
from tests.pipeline.dataset.transforms.marked_sample import KEYPOINT_NAMES, marked_sample


def test_pasted_objects_take_the_pixels_that_they_cover() -> None:
    sample = marked_sample()
    square = np.zeros((40, 60), dtype=np.uint8)
    square[20:34, 4:50] = 1  # over the white object's lower part and a piece of the grey one
    image = AnnotatedImage(2, "y", Location("y"), 40, 60, (mask_to_instance(3, square),))
    donor = to_sample_dict(image, np.full((40, 60, 3), 77, dtype=np.uint8), KEYPOINT_NAMES)
    torch.manual_seed(0)
    for _ in range(20):
        joined = paste_objects(sample, donor)
        if len(joined["labels"]) == 3:
            break
    assert joined["labels"].tolist() == [1, 2, 3]
    masks = joined["masks"].as_subclass(torch.Tensor)
    assert masks.sum(0).max() == 1  # no pixel is in two masks
    assert torch.equal(masks[2], torch.from_numpy(square))
    assert torch.equal(joined["image"][0] == 77, torch.from_numpy(square) != 0)
    assert torch.equal(joined["boxes"].as_subclass(torch.Tensor), mask_boxes(masks))
    assert joined["visibility"].tolist()[0] == [2.0, 1.0, 1.0]  # the second keypoint is covered now
    target = to_target(joined)
    assert target["keypoints"][2].tolist() == [[0.0] * 3] * 3


def test_wholly_covered_objects_are_dropped_and_unlabelled_classes_are_not_pasted() -> None:
    sample = marked_sample()
    everything = np.ones((40, 60), dtype=np.uint8)
    image = AnnotatedImage(2, "y", Location("y"), 40, 60, (mask_to_instance(3, everything),))
    donor = to_sample_dict(image, np.full((40, 60, 3), 77, dtype=np.uint8), KEYPOINT_NAMES)
    torch.manual_seed(0)
    results = [paste_objects(sample, donor) for _ in range(20)]
    pasted = [to_target(r) for r in results if len(r["labels"]) == 3]
    assert pasted and all(target["labels"].tolist() == [3] for target in pasted)
    assert all(len(paste_objects(sample, donor, labelled_classes=(1, 2))["labels"]) == 2 for _ in range(20))


def test_a_donor_of_another_size_is_cropped_to_the_sample() -> None:
    sample, donor = marked_sample(30, 50), marked_sample(40, 60)
    torch.manual_seed(0)
    joined = paste_objects(sample, donor)
    assert joined["image"].shape == (3, 30, 50)
    assert joined["masks"].shape[1:] == (30, 50)
