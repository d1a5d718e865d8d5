"""Run-length encoding: its contract, and whole masks and strings against pycocotools and masks written out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from pipeline.masks import rle, rle_kernel
from pipeline.masks.rle import encode_roi_masks, encode_roi_masks_and_areas
from tests.paths import ROOT
from tests.pipeline.masks.roi_masks import draw_blobs, draw_boxes

# --- encode_roi_masks: its contract; test_rle_kernel.py compares the strings with the reference


def test_tensors_and_arrays_of_any_layout_give_the_same() -> None:
    rng = np.random.default_rng(6)
    masks, boxes, size = draw_blobs(rng, 5, 28), draw_boxes(rng, 5, (200, 300)), (200, 300)
    expected = encode_roi_masks(masks, boxes, size)
    assert encode_roi_masks(torch.from_numpy(masks).requires_grad_(), torch.from_numpy(boxes), size) == expected
    assert encode_roi_masks(np.asfortranarray(masks), np.asfortranarray(boxes), size) == expected
    masks.flags.writeable = boxes.flags.writeable = False
    assert encode_roi_masks(masks, boxes, size) == expected
    assert len(rle_kernel.encode_boxes.signatures) == 1, "each layout would be compiled anew, for seconds"


def test_no_instances_give_no_strings() -> None:
    counts, areas = encode_roi_masks_and_areas(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (5, 5))
    assert counts == []
    assert areas.shape == (0,) and areas.dtype == np.int64


def test_a_thousand_instances_in_one_call_equal_a_thousand_calls() -> None:
    rng = np.random.default_rng(7)
    masks, boxes, size = draw_blobs(rng, 1000, 14), draw_boxes(rng, 1000, (480, 640)), (480, 640)
    one_by_one = [encode_roi_masks(masks[n : n + 1], boxes[n : n + 1], size)[0] for n in range(1000)]
    assert encode_roi_masks(masks, boxes, size) == one_by_one


MASKS, BOXES = np.full((2, 7, 7), 0.9, np.float32), np.array([[1, 1, 9, 9], [2, 2, 8, 8]], np.float32)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[1, 1] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MASKS[:, None], BOXES, (9, 9)), r"mask_probs must have the shape \[N, M, M\].*\[2, 1, 7, 7\]"),
        ((MASKS[:, :5], BOXES, (9, 9)), r"mask_probs must have the shape.*\[2, 5, 7\]"),
        ((MASKS[:, :0, :0], BOXES, (9, 9)), r"mask_probs must have the shape.*\[2, 0, 0\]"),
        ((MASKS.astype(np.float64), BOXES, (9, 9)), "mask_probs must be float32, not float64"),
        (
            (torch.from_numpy(MASKS).bfloat16(), BOXES, (9, 9)),
            "mask_probs must be float32, not torch.bfloat16",
        ),
        ((torch.zeros(2, 7, 7, device="meta"), BOXES, (9, 9)), "mask_probs must be on the CPU, not on meta"),
        (
            (MASKS.tolist(), BOXES, (9, 9)),
            "mask_probs must be a numpy array or a CPU torch tensor, not a list",
        ),
        ((MASKS, BOXES[:1], (9, 9)), r"boxes must have the shape \[N, 4\].*2, not \[1, 4\]"),
        ((MASKS, BOXES.ravel(), (9, 9)), r"boxes must have the shape.*\[8\]"),
        ((MASKS, BOXES.astype(np.int64), (9, 9)), "boxes must be float32 or float64, not int64"),
        ((with_value(MASKS, np.nan), BOXES, (9, 9)), "mask_probs must be finite, but mask 1 of 2"),
        ((with_value(MASKS, np.inf), BOXES, (9, 9)), "mask_probs must be finite, but mask 1 of 2"),
        ((with_value(MASKS, -np.inf), BOXES, (9, 9)), "mask_probs must be finite, but mask 1 of 2"),
        ((MASKS, with_value(BOXES, np.nan), (9, 9)), "boxes must be finite, but box 1"),
        ((MASKS, with_value(BOXES, -np.inf), (9, 9)), "boxes must be finite, but box 1"),
        ((MASKS, with_value(BOXES, 3e38), (9, 9)), r"boxes must lie within 2\*\*30 px, but box 1"),
        ((MASKS, BOXES, (9, 0)), "height and width must be whole numbers >= 1, not 9 and 0"),
        ((MASKS, BOXES, (2.5, 9)), "height and width must be whole numbers >= 1, not 2.5 and 9"),
        ((MASKS, BOXES, (65536, 65536)), r"fewer than 2\*\*32 pixels, not 65536 x 65536"),
        ((MASKS, BOXES, (9, 9), float("nan")), "threshold must be a finite number, not nan"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        encode_roi_masks(*arguments)


def test_a_hundred_megapixels_take_little_memory() -> None:
    """The peak over a call with 300 instances on 10,000 x 10,000 px, whose full masks would take 30 GB."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        pytest.skip("the peak resident size is read from /proc")

    def read_mib(field: str) -> float:
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if field in line)

    rng = np.random.default_rng(8)
    size = (10_000, 10_000)
    masks, boxes = draw_blobs(rng, 300, 28), draw_boxes(rng, 300, size)
    encode_roi_masks(masks[:1], boxes[:1], size)
    reset.write_text("5")
    before = read_mib("VmRSS")
    encode_roi_masks(masks, boxes, size)
    assert read_mib("VmHWM") - before < 20


# --- whole masks and strings


def draw_masks(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = [np.zeros((7, 5), np.uint8), np.ones((7, 5), np.uint8), np.eye(6, 9, dtype=np.uint8)]
    masks += [(rng.random(rng.integers(1, 40, 2)) < rng.random()).astype(np.uint8) for _ in range(100)]
    long_runs = np.zeros((3000, 40), np.uint8)
    long_runs[:, 20:35] = 1
    long_runs[17:1500, 36:39] = 1
    return [*masks, long_runs]


def test_whole_masks_go_there_and_back() -> None:
    for mask in draw_masks():
        counts = rle.encode_mask(mask)
        expected = coco.encode(np.asfortranarray(mask))
        assert counts == expected["counts"].decode()
        decoded = rle.decode_rle(counts, *mask.shape)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, mask)
        np.testing.assert_array_equal(rle.decode_rle(counts.encode(), *mask.shape), mask)
        assert rle.encode_mask(mask.astype(bool)) == counts
        assert rle.encode_mask(mask * 255) == counts
        assert rle.runs_to_rle(rle.counts_to_runs(counts).tolist(), *mask.shape) == counts


@pytest.mark.parametrize("counts", ["", "P", "5o", "5\xe9", "p5", "-5", "5 5", None, 35])
def test_malformed_counts_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="counts must be compressed COCO strings, but number 0 is"):
        rle.decode_rle(counts, 5, 7)
    with pytest.raises(ValueError, match="counts must be compressed COCO strings, but number 0 is"):
        rle.rle_areas([counts])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("5", "must describe 5 x 7 = 35 pixels, but describe 5"),
        ("O", "no negative run length, but run 0 is -1"),
        ("oooooooo0", "numbers of at most 7 characters, not 9"),
    ],
)
def test_counts_that_do_not_fit_the_image_are_refused(counts, message) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode_rle(counts, 5, 7)


def test_areas_and_bboxes_are_those_of_the_masks() -> None:
    for mask in draw_masks(seed=1):
        counts = [rle.encode_mask(mask), rle.encode_mask(1 - mask)]
        areas = rle.rle_areas(counts)
        assert areas.dtype == np.int64
        assert areas.tolist() == [mask.sum(), (1 - mask).sum()]
        bboxes = rle.rle_bbox(counts, *mask.shape)
        assert bboxes.dtype == np.float32
        for whole, bbox in zip((mask, 1 - mask), bboxes):
            y, x = np.nonzero(whole)
            tight = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] if len(x) else [0, 0, 0, 0]
            assert bbox.tolist() == tight
    assert rle.rle_areas([]).shape == (0,)
    assert rle.rle_bbox([], 5, 5).shape == (0, 4)


def test_any_number_of_masks_at_once() -> None:
    """More than 255, where pycocotools' own area raises an OverflowError under numpy 2."""
    counts = [rle.encode_mask(np.eye(30, 40, n % 40, dtype=np.uint8)) for n in range(600)]
    areas = [min(30, 40 - n % 40) for n in range(600)]
    assert rle.rle_areas(counts).tolist() == areas
    assert rle.rle_bbox(counts, 30, 40)[:, 2].tolist() == areas
    assert np.diag(rle.rle_iou(counts, counts, 30, 40)).tolist() == [1.0] * 600


def test_iou_is_that_of_the_masks() -> None:
    rng = np.random.default_rng(2)
    left, right = (rng.random((2, 4, 12, 17)) < 0.4).astype(np.uint8)
    left_counts, right_counts = ([rle.encode_mask(mask) for mask in masks] for masks in (left, right))
    both = np.einsum("dhw,ghw->dg", left.astype(int), right.astype(int))
    sizes, other_sizes = left.sum((1, 2)), right.sum((1, 2))
    union = sizes[:, None] + other_sizes - both
    np.testing.assert_allclose(rle.rle_iou(left_counts, right_counts, 12, 17), both / union)
    crowd = rle.rle_iou(left_counts, right_counts, 12, 17, iscrowd=[False, True, False, False])
    np.testing.assert_allclose(crowd[:, 1], both[:, 1] / sizes)
    np.testing.assert_allclose(crowd[:, 2], (both / union)[:, 2])
    assert rle.rle_iou([], right_counts, 12, 17).shape == (0, 4)
    assert rle.rle_iou(left_counts, [], 12, 17).shape == (4, 0)
    with pytest.raises(ValueError, match="iscrowd must have one entry for each of the 4 truths, not 1"):
        rle.rle_iou(left_counts, right_counts, 12, 17, iscrowd=[True])


def test_merged_masks_are_the_union_or_what_all_share() -> None:
    masks = (np.random.default_rng(4).random((3, 12, 17)) < 0.6).astype(np.uint8)
    counts = [rle.encode_mask(mask) for mask in masks]
    np.testing.assert_array_equal(rle.decode_rle(rle.rle_merge(counts, 12, 17), 12, 17), masks.max(0))
    shared = rle.rle_merge(counts, 12, 17, intersect=True)
    np.testing.assert_array_equal(rle.decode_rle(shared, 12, 17), masks.min(0))
    assert rle.rle_merge(counts[:1], 12, 17) == counts[0]
    with pytest.raises(ValueError, match="at least one mask"):
        rle.rle_merge([], 12, 17)


def test_run_lengths_of_many_masks_are_written_as_one_by_one() -> None:
    masks = [mask for mask in draw_masks(seed=5) if mask.shape != (3000, 40)]
    expected = [rle.encode_mask(mask) for mask in masks]
    runs = [rle.counts_to_runs(counts) for counts in expected]
    for times in (1, 1 + 20_000 // sum(map(len, runs))):  # few runs, and so many that the compiled writer is taken
        many = runs * times
        counts, areas = rle.runs_to_counts(np.concatenate(many), np.array([len(lengths) for lengths in many]))
        assert counts == expected * times and areas.tolist() == [int(mask.sum()) for mask in masks] * times
    counts, areas = rle.runs_to_counts(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert counts == [] and areas.shape == (0,)


def test_polygons_fill_their_union() -> None:
    squares = [[2, 3, 8, 3, 8, 9, 2, 9], [6, 6, 14, 6, 14, 11, 6, 11]]
    expected = np.zeros((12, 16), np.uint8)
    expected[3:9, 2:8] = 1
    expected[6:11, 6:14] = 1
    np.testing.assert_array_equal(rle.decode_rle(rle.polygons_to_rle(squares, 12, 16), 12, 16), expected)
    outside = rle.polygons_to_rle([[-5, -5, 4, -5, 4, 4, -5, 4]], 12, 16)
    assert rle.rle_bbox([outside], 12, 16).tolist() == [[0, 0, 4, 4]]
    assert rle.rle_areas([rle.polygons_to_rle([], 12, 16)]).tolist() == [0]
    rng = np.random.default_rng(3)
    polygons = rng.uniform(-5, 60, (4, 10)).tolist()
    merged = coco.merge(coco.frPyObjects(polygons, 50, 40))["counts"].decode()
    assert rle.polygons_to_rle(polygons, 50, 40) == merged


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 4, 4], r"polygon 0 must be a flat list"),  # pycocotools would take it for a box
        ([1, 1, 4, 4, 5, 5, 6], r"polygon 0 must be a flat list"),
        ([[1, 1], [4, 4], [1, 4]], r"polygon 0 must be a flat list"),
        ([1, 1, 4, 4, np.nan, 5], "polygon 0 must have finite coordinates"),
        ([1, 1, 4, 4, 1e9, 5], "polygon 0 must have finite coordinates of at most 1e\\+06"),
    ],
)
def test_polygons_pycocotools_would_misread_are_refused(polygon, message) -> None:
    with pytest.raises(ValueError, match=message):
        rle.polygons_to_rle([polygon], 10, 10)


@pytest.mark.parametrize("runs", [[3, 4], [40, -5], [2.5, 32.5], [[35]]])
def test_runs_that_do_not_fill_the_image_are_refused(runs) -> None:
    with pytest.raises(ValueError, match="runs must"):
        rle.runs_to_rle(runs, 5, 7)


@pytest.mark.parametrize("mask", [np.zeros(5, np.uint8), np.zeros((2, 2), np.float32), np.zeros((0, 4), bool), [[1]]])
def test_masks_of_another_shape_or_dtype_are_refused(mask) -> None:
    with pytest.raises(ValueError, match=r"mask must|height and width must"):
        rle.encode_mask(mask)


def test_reading_tables_needs_no_compiler() -> None:
    """Neither the module nor decoding pays for the import of numba, torch or pycocotools."""
    code = "import sys; from pipeline.masks import rle; rle.decode_rle('S1', 5, 7); "
    code += "assert not {'numba', 'torch', 'pycocotools'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
