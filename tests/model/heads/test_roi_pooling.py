"""RoI pooling: RoIAlign, RoIPool and RoIWarp on a 4 x 4 map whose values are worked out by hand.

The map is 4 y + x at pixel (x, y), so that a bilinear sample inside it is 4 y + x too. The RoI of most tests is (0.3,
0.3, 2.4, 2.4) with 2 x 2 bins.
"""

from typing import Any

import pytest
import torch

from model.heads.roi_pooling import pool_rois

MAP = torch.arange(16.0).reshape(1, 1, 4, 4)
ROI = torch.tensor([[0, 0.3, 0.3, 2.4, 2.4]])


def pool(**options):
    options = {"output_size": 2, "scale": 1.0, "sampling_ratio": 1, **options}
    return pool_rois(MAP, ROI, **options)[0, 0]


def test_align_samples_the_exact_roi():
    # Bins of 1.05: centres at 0.825 and 1.875; 4 * 0.825 + 0.825 = 4.125.
    torch.testing.assert_close(pool(op="align"), torch.tensor([[4.125, 5.175], [8.325, 9.375]]))


def test_align_with_half_a_pixel():
    # Pixel centres at .5: every sample moves by 0.5 in x and y, 2.5 in value.
    torch.testing.assert_close(pool(op="align", half_pixel=True), torch.tensor([[1.625, 2.675], [5.825, 6.875]]))


def test_align_takes_the_largest_sample():
    # Two samples along each side, 0.2625 before and after the centre; the last one is the largest: + 5 * 0.2625.
    expected = torch.tensor([[4.125, 5.175], [8.325, 9.375]]) + 1.3125
    torch.testing.assert_close(pool(op="align", reduce="max", sampling_ratio=2), expected)


def test_pool_reduces_whole_pixels():
    # 0.3 rounds to 0 and 2.4 to 2: pixels 0 to 2; bins of 1.5 pixels cover {0, 1} and {1, 2}.
    assert pool(op="pool", reduce="max").tolist() == [[5, 6], [9, 10]]
    # (0 + 1 + 4 + 5) / 4, and so on.
    assert pool(op="pool", reduce="average").tolist() == [[2.5, 3.5], [6.5, 7.5]]


def test_warp_samples_the_rounded_roi():
    # The pixels 0 to 2 are the span [0, 3): bins of 1.5, centres at 0.75 and 2.25, half a pixel off: 0.25 and 1.75.
    torch.testing.assert_close(pool(op="warp"), torch.tensor([[1.25, 2.75], [7.25, 8.75]]))


def test_warp_takes_the_largest_sample():
    # Second samples at 1.125 and 2.625, less half a pixel: 0.625 and 2.125; 4 * 0.625 + 2.125 = 4.625.
    expected = torch.tensor([[3.125, 4.625], [9.125, 10.625]])
    torch.testing.assert_close(pool(op="warp", reduce="max", sampling_ratio=2), expected)


def test_scale_maps_image_pixels_to_map_pixels():
    doubled = pool_rois(MAP, ROI * 2, output_size=2, scale=0.5, op="warp", sampling_ratio=1)
    torch.testing.assert_close(doubled[0, 0], pool(op="warp"))


def test_halves_round_up_as_in_roi_pool():
    roi = torch.tensor([[0, 0.5, 0.5, 1.5, 1.5]])
    assert pool_rois(MAP, roi, output_size=1, scale=1.0, op="pool", reduce="max").item() == 10
    assert pool_rois(MAP, roi, output_size=1, scale=1.0, op="pool", reduce="average").item() == 7.5


@pytest.mark.parametrize("reduce", ["average", "max"])
def test_average_pool_covers_the_pixels_max_pool_does(reduce):
    """Over a map of ones, a bin with any pixel gives 1 in both, and a bin with none gives 0 in both."""
    rois = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) * 12 - 2
    rois[:, 0] = 0
    rois[:, 3:] = rois[:, 1:3] + rois[:, 3:].abs()
    options: dict[str, Any] = {"output_size": 3, "scale": 0.5, "op": "pool"}
    ones = pool_rois(torch.ones(1, 2, 5, 6), rois, reduce=reduce, **options)
    torch.testing.assert_close(ones, pool_rois(torch.ones(1, 2, 5, 6), rois, reduce="max", **options))


@pytest.mark.parametrize("op", ["align", "pool", "warp"])
@pytest.mark.parametrize("reduce", ["average", "max"])
def test_gradients_reach_the_map_and_no_roi_gives_an_empty_result(op, reduce):
    features = torch.rand(2, 3, 8, 8, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 6, 7], [1, 0, 2, 5, 5]])
    pool_rois(features, rois, output_size=2, scale=1.0, op=op, reduce=reduce).sum().backward()
    assert features.grad is not None
    assert (features.grad[0] != 0).any() and (features.grad[1] != 0).any()
    empty = pool_rois(features, rois[:0], output_size=2, scale=1.0, op=op, reduce=reduce)
    assert empty.shape == (0, 3, 2, 2)


@pytest.mark.parametrize("reduce", ["average", "max"])
@pytest.mark.parametrize("op", ["align", "pool", "warp"])
def test_maps_of_bfloat16_are_pooled_in_float32(op, reduce):
    """torchvision's operations want one type for maps and RoIs, and have no bfloat16 on GPUs."""
    maps, rois = torch.randn(1, 2, 16, 16).bfloat16(), torch.tensor([[0.0, 3, 2, 70, 61]])
    options: dict[str, Any] = {"output_size": 3, "scale": 0.25, "op": op, "reduce": reduce}
    pooled = pool_rois(maps, rois, **options)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, pool_rois(maps.float(), rois, **options).bfloat16())
