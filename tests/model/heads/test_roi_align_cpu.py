"""RoIAlign from tables on a CPU against torchvision's operator."""

import pytest
import torch
from torchvision.ops import roi_align

from model.heads.roi_align_cpu import MapTable


@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_the_table_gives_roi_aligns_values(half_pixel, ratio):
    """RoIs inside, outside and across the border, thin ones and ones of negative width or height."""
    torch.manual_seed(0)
    maps, strides = [torch.randn(2, 8, 40, 50), torch.randn(2, 8, 20, 25)], (4, 8)
    boxes = torch.rand(300, 4) * 240 - 40
    boxes[:, 2:] = boxes[:, :2] + torch.rand(300, 2) * 120 - 5
    rois = torch.cat([torch.randint(0, 2, (300, 1)).float(), boxes], dim=1)
    levels = torch.randint(0, 2, (300,))
    options = {"output_size": 7, "sampling_ratio": ratio, "half_pixel": half_pixel}
    table = MapTable(maps, strides)
    pooled = table.align(rois, levels, **options)
    for level, (level_maps, stride) in enumerate(zip(maps, strides)):
        expected = roi_align(level_maps, rois[levels == level], 7, 1 / stride, ratio, half_pixel)
        torch.testing.assert_close(pooled[levels == level], expected, rtol=0, atol=1e-5)
    assert table.align(rois[:0], levels[:0], **options).shape == (0, 8, 7, 7)
