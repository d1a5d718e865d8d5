"""Mask run lengths in torch: pasted they are the bytes of the pipeline's encoder, traced the same but for rounding."""

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import pixels_that_differ, trace
from model.inference.mask_rle import paste_runs, place, trace_runs
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
    """Strings and areas by torch's own resize."""
    return runs_to_counts(*paste_runs(torch.from_numpy(masks), torch.from_numpy(boxes), size, threshold))


def check_traced(masks, boxes, size, threshold=0.5):
    """Traced masks are those of torch's own resize, save pixels whose probability is the threshold but for rounding."""
    tensors = torch.from_numpy(masks), torch.from_numpy(boxes)
    runs = trace(*tensors, size, torch.device("cpu"), threshold)
    lengths, counts = runs
    assert lengths.dtype == counts.dtype == np.int64 and len(counts) == len(masks) and counts.sum() == len(lengths)
    for part in np.split(lengths, np.cumsum(counts)[:-1]) if len(masks) else ():
        assert part.sum() == size[0] * size[1] and (part[1:] > 0).all(), "no run but the first is empty"
    number, farthest = pixels_that_differ(*tensors, size, runs, threshold)
    assert farthest <= 1e-6, f"{number} pixels differ, one of them by {farthest:.2g}"
    return number


SIZES = [((480, 640), 28, 60), ((97, 120), 28, 60), ((31, 45), 14, 40), ((700, 500), 56, 20), ((9, 2000), 28, 9)]


@pytest.mark.parametrize(("size", "side", "count"), SIZES)
def test_bytes_and_areas_are_those_of_the_pipelines_encoder(size, side, count):
    """Boxes large and small (both of torch's kernels), and beyond every border."""
    height, width = size
    masks, boxes = blobs(count, side, 0), draw_boxes(count, height, width, 1)
    expected, expected_areas = encode_roi_masks_and_areas(masks, boxes, size)
    encoded, areas = encode_in_torch(masks, boxes, size)
    assert encoded == expected and len(set(encoded)) > count // 2
    np.testing.assert_array_equal(areas, expected_areas)


@pytest.mark.parametrize(("size", "side", "count"), SIZES)
def test_traced_masks_differ_only_where_the_probability_is_the_threshold(size, side, count):
    height, width = size
    masks, boxes = blobs(count, side, 0), draw_boxes(count, height, width, 1)
    assert check_traced(masks, boxes, size) < 5
    noise = np.random.default_rng(2).random(masks.shape, np.float32)  # passes the threshold in every segment
    assert check_traced(noise, boxes, size, 0.4) < 5


def test_probabilities_at_the_threshold_are_the_only_ones_that_rounding_decides():
    """Half of the values are the threshold itself, so that whole rows of pixels are."""
    masks = np.random.default_rng(3).choice(np.array([0, 0.5, 0.5, 1], np.float32), (40, 28, 28))
    check_traced(masks, draw_boxes(40, 200, 300, 4), (200, 300))
    check_traced(np.full((9, 28, 28), 0.3, np.float32), draw_boxes(9, 100, 90, 5), (100, 90), 0.3)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 0.3, 0.999, 1.5])
def test_bytes_are_equal_at_every_threshold(threshold):
    masks, boxes = blobs(12, 28, 3), draw_boxes(12, 90, 70, 4)
    expected, _ = encode_roi_masks_and_areas(masks, boxes, (90, 70), threshold)
    assert encode_in_torch(masks, boxes, (90, 70), threshold)[0] == expected
    assert check_traced(masks, boxes, (90, 70), threshold) == 0


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
    assert check_traced(masks, boxes, (30, 40)) == check_traced(masks[:0], boxes[:0], (30, 40)) == 0


def test_masks_of_several_images_are_traced_at_once():
    sizes = [(60, 80), (60, 80), (100, 30), (48, 48)]
    masks, boxes = torch.from_numpy(blobs(4, 28, 5)), torch.from_numpy(draw_boxes(4, 60, 50, 6))
    boxes[0] = torch.tensor([-10.0, -10, 90, 70])  # columns of full height follow one another without a gap
    masks[0] = 1
    placement = place(boxes, torch.tensor(sizes), 28)
    lengths, counts = trace_runs(masks, placement, sizes, int(placement.num_columns.sum()), 0.5)
    ends = np.cumsum(counts)
    for index, size in enumerate(sizes):
        alone, _ = trace(masks[index : index + 1], boxes[index : index + 1], size, torch.device("cpu"), 0.5)
        np.testing.assert_array_equal(lengths[ends[index] - counts[index] : ends[index]], alone)
    assert lengths[0] == 0 and counts[0] == 2
