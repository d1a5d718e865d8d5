"""The kernel's strings against torchvision's paste and pycocotools' encode, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.masks import rle, rle_kernel
from pipeline.masks.rle import encode_roi_masks
from tests.paths import ROOT
from tests.pipeline.masks.roi_masks import check_equal, draw_blobs, draw_boxes, reference


@pytest.mark.parametrize("seed", range(20))
def test_random_masks_and_boxes_give_the_reference_bytes(seed) -> None:
    """Ten cases each: boxes over every border, clipped ones, 1 px boxes, full-image boxes, empty masks."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 700, 2))
    for side in (14, 28, 56):
        masks = draw_blobs(rng, 10, side)
        boxes = draw_boxes(rng, 10, (height, width))
        boxes[0] += [width, 0, width, 0] - boxes[0, [2, 0, 2, 0]] * [1, 0, 1, 0]  # over the right border
        boxes[1, 2:] = boxes[1, :2] + 1
        boxes[2] = [0, 0, width, height]
        boxes[3] = [-30.5, -20.25, width + 12.75, 17.5]
        boxes[4] = [5.5, height - 9.25, 60.125, height + 40]
        boxes[5] = np.clip(boxes[5], 0, [width, height, width, height])
        masks[6] = 0
        masks[7] *= 0.45
        check_equal(masks, boxes, (height, width))


def draw_adversarial(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[int, int], float]:
    """Masks, boxes, image size and threshold of four instances: constant masks, steps, values next to the threshold."""
    limit = np.log(rng.choice([8, 60, 300]))
    height, width = (int(side) for side in np.exp(rng.uniform(0, limit, 2)))
    side, num = int(rng.choice([1, 2, 3, 5, 7, 14, 28, 56, int(rng.integers(1, 65))])), 4
    threshold = float(rng.choice([0.5, 0.5, 0.5, 0.3, 0.0, 1.0, 1 / 3, rng.random(), -0.1, 1e-8]))
    shape = (num, side, side)
    masks = [
        lambda: rng.random(shape),
        lambda: np.full(shape, threshold),
        lambda: np.full(shape, rng.random()),
        lambda: np.indices(shape).sum(0) % 2,  # a checkerboard
        lambda: rng.integers(0, 2, shape),
        lambda: rng.integers(0, 5, shape) / 4,
        lambda: np.broadcast_to(np.arange(side)[:, None] < side // 2, shape),  # a step
        lambda: threshold + rng.integers(-3, 4, shape) * 2.0**-24,
        lambda: rng.integers(0, 2, shape) * 2 * threshold,
        lambda: draw_blobs(rng, num, side),
    ][rng.integers(10)]()
    full = np.array([width, height, width, height])
    centres, sides = rng.uniform(-0.2, 1.2, (num, 2)), rng.random((num, 2)) ** 2 * rng.choice([0.1, 0.5, 1.5])
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1) * full
    kind = rng.integers(8)
    if kind == 0:
        boxes[:] = [0, 0, width, height]
    elif kind == 1:
        boxes[:, 2:] = boxes[:, :2] + 1
    elif kind == 2:
        boxes = np.round(boxes)
    elif kind == 3:
        boxes = np.round(boxes * 2) / 2
    elif kind == 4:
        boxes[:, 2] = boxes[:, 0]
    elif kind == 5:
        boxes[:, 2:] = boxes[:, :2] - rng.uniform(0, 3, (num, 2))
    elif kind == 6:
        boxes[:, [0, 2]] += rng.choice([-1.5, 1.5]) * width
    return np.clip(masks, 0, 1).astype(np.float32), boxes.astype(np.float32), (height, width), threshold


def run_adversarial(num_cases: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num_cases):
        check_equal(*draw_adversarial(rng))


def test_four_thousand_adversarial_masks_give_the_reference_bytes() -> None:
    run_adversarial(1000, seed=1)


@pytest.mark.long  # a process that compiles the kernels anew
def test_doubtful_pixels_follow_the_reference_arithmetic_on_a_cpu_without_fma(tmp_path) -> None:
    """torch's baseline build rounds differently; a process of its own makes torch use it."""
    code = "from tests.pipeline.masks.test_rle_kernel import *; assert not rle_kernel.torch_resize_is_fused(); "
    code += "assert torch.backends.cpu.get_cpu_capability() == 'DEFAULT'; run_adversarial(200, seed=2)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [(40, 60), (300, 250)])
def test_the_reference_arithmetic_decides_where_rounding_would(size, fused, monkeypatch) -> None:
    """On constant masks at an uneven threshold every pixel is doubtful, and the wrong arithmetic shows."""
    monkeypatch.setattr(rle_kernel, "torch_resize_is_fused", lambda: fused)
    rng = np.random.default_rng(3)
    values = rng.random(60).astype(np.float32)
    differing = 0
    for value in values:
        mask = np.full((1, 5, 5), value, np.float32)
        box = np.array([[1, 1, size[1] - 2, size[0] - 2]], np.float32)
        counts = encode_roi_masks(mask, box, size, float(value))
        differing += counts != reference(mask, box, size, float(value))
    is_this_machine = fused == (torch.backends.cpu.get_cpu_capability() != "DEFAULT")
    assert (differing == 0) == is_this_machine


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (700, 3), (3, 700)])
@pytest.mark.parametrize("side", [1, 2, 14, 64])
def test_images_of_one_row_or_column(size, side) -> None:
    rng = np.random.default_rng(side)
    height, width = size
    boxes = np.array([[0, 0, width, height], [-3, -3, width + 3, height + 3], [0.25, 0.25, 0.5, 0.5]])
    check_equal(rng.random((3, side, side)), boxes, size)


@pytest.mark.parametrize("box", [[-50, 5, -40, 20], [5, -50, 20, -40], [300, 5, 310, 20], [5, 200, 20, 210]])
def test_a_box_outside_the_image_has_an_empty_mask(box) -> None:
    mask, boxes = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)
    counts = encode_roi_masks(mask, boxes, (100, 200))
    assert counts == [rle.encode_mask(np.zeros((100, 200), np.uint8))]


def test_a_tall_and_a_wide_box_on_a_large_image() -> None:
    rng = np.random.default_rng(4)
    check_equal(draw_blobs(rng, 2, 28), [[3000.5, 1.25, 3004, 2990], [10, 700.5, 3900, 703]], (3000, 4000))


def test_float64_boxes_are_expanded_in_float64() -> None:
    rng = np.random.default_rng(5)
    masks, boxes = draw_blobs(rng, 50, 28), draw_boxes(rng, 50, (300, 400)).astype(np.float64)
    assert encode_roi_masks(masks, boxes, (300, 400)) == reference(masks, boxes, (300, 400), 0.5)


def test_a_function_numba_cannot_cache_is_compiled_without_the_cache() -> None:
    program: dict[str, Any] = {}
    exec("def double(x): return 2 * x", program)  # a function without a file, beside which a cache could be
    assert rle_kernel.compiled(program["double"])(21) == 42
