"""The GPU twin of the mask encoder, run on a CPU: the same bytes."""

import numpy as np
import pytest
import torch

from model.inference import mask_rle as module
from model.inference.mask_rle import Paste, mask_runs
from pipeline.masks.rle import encode_roi_masks_and_areas, runs_to_counts
from pipeline.masks.rle_kernel import torch_resize_is_fused


def blobs(count, side, seed):
    """Smooth blobs with noise of 0.5 on the logit, as mask heads give them."""
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


def twin(masks, boxes, size, threshold=0.5):
    paste = Paste(threshold, torch_resize_is_fused())
    lengths, numbers = mask_runs(torch.from_numpy(masks), torch.from_numpy(boxes), size, paste)
    return runs_to_counts(lengths.numpy(), numbers.numpy())


@pytest.mark.parametrize(
    ("size", "side", "count"), [((480, 640), 28, 60), ((97, 120), 28, 60), ((31, 45), 14, 40), ((700, 500), 56, 20)]
)
def test_the_same_bytes(size, side, count):
    """Boxes large and small (both of torch's kernels), and beyond every border."""
    masks, boxes = blobs(count, side, 0), draw_boxes(count, *size, 1)
    want, want_areas = encode_roi_masks_and_areas(masks, boxes, size)
    found, areas = twin(masks, boxes, size)
    assert found == want and len(set(found)) > count // 2
    np.testing.assert_array_equal(areas, want_areas)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 0.3, 0.999, 1.5])
def test_every_threshold(threshold):
    masks, boxes = blobs(12, 28, 3), draw_boxes(12, 90, 70, 4)
    want, _ = encode_roi_masks_and_areas(masks, boxes, (90, 70), threshold)
    assert twin(masks, boxes, (90, 70), threshold)[0] == want


def test_odd_boxes_and_whole_images():
    boxes = np.array(
        [[0, 0, 40, 30], [-20, -20, 60, 50], [100, 100, 120, 130], [5, 5, 5, 5], [10, 3, 9, 2], [39, 29, 40, 30]],
        np.float32,
    )
    masks = np.ones((len(boxes), 28, 28), np.float32)
    masks[3] = 0
    want, want_areas = encode_roi_masks_and_areas(masks, boxes, (30, 40))
    found, areas = twin(masks, boxes, (30, 40))
    assert found == want
    np.testing.assert_array_equal(areas, want_areas)
    assert twin(masks[:0], boxes[:0], (30, 40))[0] == []


@pytest.mark.parametrize("pixels", [1, 50, 1000])
def test_how_many_pixels_at_a_time_changes_nothing(pixels, monkeypatch):
    masks, boxes = blobs(15, 28, 5), draw_boxes(15, 60, 80, 6)
    boxes[0] = [-10, -10, 90, 70]  # columns of full height follow one another without a gap
    masks[0] = 1
    want = twin(masks, boxes, (60, 80))[0]
    monkeypatch.setattr(module, "_PIXELS_AT_A_TIME", pixels)
    assert twin(masks, boxes, (60, 80))[0] == want == encode_roi_masks_and_areas(masks, boxes, (60, 80))[0]
