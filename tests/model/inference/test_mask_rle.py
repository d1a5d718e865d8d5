"""Mask run lengths in torch, run on a CPU: the same bytes as the mask encoder of the pipeline."""

import numpy as np
import pytest
import torch

from model.inference import mask_rle as module
from model.inference.mask_rle import Paste, mask_runs
from pipeline.masks.rle import encode_roi_masks_and_areas, runs_to_counts


def blobs(count, side, seed):
    """Masks like those of a mask head: smooth blobs with noise of 0.5 on the logit."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    radius = random.uniform(0.2, 0.6, (count, 1, 1))
    logits = 8 * (radius - np.hypot(y, x)) + random.normal(0, 0.5, (count, side, side))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def draw_boxes(count, height, width, seed):
    random = np.random.default_rng(seed)
    centre = random.uniform(0, 1, (count, 2)) * [width, height]
    sides = (0.02 + 0.4 * random.uniform(0, 1, (count, 2)) ** 2) * [width, height]
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)


def encode_in_torch(masks, boxes, size, threshold=0.5):
    paste = Paste(threshold)
    lengths, counts = mask_runs(torch.from_numpy(masks), torch.from_numpy(boxes), size, paste)
    return runs_to_counts(lengths.numpy(), counts.numpy())


@pytest.mark.parametrize(
    ("size", "side", "count"), [((480, 640), 28, 60), ((97, 120), 28, 60), ((31, 45), 14, 40), ((700, 500), 56, 20)]
)
def test_bytes_and_areas_are_those_of_the_pipelines_encoder(size, side, count):
    """Boxes large and small (both of torch's kernels), and beyond every border."""
    height, width = size
    masks, boxes = blobs(count, side, 0), draw_boxes(count, height, width, 1)
    expected, expected_areas = encode_roi_masks_and_areas(masks, boxes, size)
    encoded, areas = encode_in_torch(masks, boxes, size)
    assert encoded == expected and len(set(encoded)) > count // 2
    np.testing.assert_array_equal(areas, expected_areas)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 0.3, 0.999, 1.5])
def test_bytes_are_equal_at_every_threshold(threshold):
    masks, boxes = blobs(12, 28, 3), draw_boxes(12, 90, 70, 4)
    expected, _ = encode_roi_masks_and_areas(masks, boxes, (90, 70), threshold)
    assert encode_in_torch(masks, boxes, (90, 70), threshold)[0] == expected


def test_empty_inverted_and_outside_boxes_and_whole_images_give_equal_bytes():
    boxes = np.array(
        [[0, 0, 40, 30], [-20, -20, 60, 50], [100, 100, 120, 130], [5, 5, 5, 5], [10, 3, 9, 2], [39, 29, 40, 30]],
        np.float32,
    )
    masks = np.ones((len(boxes), 28, 28), np.float32)
    masks[3] = 0
    expected, expected_areas = encode_roi_masks_and_areas(masks, boxes, (30, 40))
    encoded, areas = encode_in_torch(masks, boxes, (30, 40))
    assert encoded == expected
    np.testing.assert_array_equal(areas, expected_areas)
    assert encode_in_torch(masks[:0], boxes[:0], (30, 40))[0] == []


@pytest.mark.parametrize("pixels", [1, 50, 1000])
def test_the_size_of_the_chunks_changes_nothing(pixels, monkeypatch):
    masks, boxes = blobs(15, 28, 5), draw_boxes(15, 60, 80, 6)
    boxes[0] = [-10, -10, 90, 70]  # columns of full height follow one another without a gap
    masks[0] = 1
    expected = encode_in_torch(masks, boxes, (60, 80))[0]
    monkeypatch.setattr(module, "_PIXELS_AT_A_TIME", pixels)
    assert (
        encode_in_torch(masks, boxes, (60, 80))[0] == expected == encode_roi_masks_and_areas(masks, boxes, (60, 80))[0]
    )
