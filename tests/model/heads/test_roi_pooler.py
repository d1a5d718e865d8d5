"""RoI pooler: each RoI is pooled from the map of the pyramid level that its size calls for."""

import torch

from model.heads.roi_pooler import RoIPooler, assign_levels
from model.spec import ModelSpec


def test_levels_follow_equation_1_of_the_pyramid_paper():
    sides = torch.tensor([10.0, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert assign_levels(boxes, (4, 8, 16, 32)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_levels(boxes, (16,)).tolist() == [0] * 8


def test_pooler_reads_each_roi_from_its_map_and_image():
    maps = {str(i): torch.full((2, 1, 64 >> i, 64 >> i), float(i)) for i in range(4)}
    maps["0"][1] = 10
    boxes = [torch.tensor([[0.0, 0, 250, 250]]), torch.tensor([[0.0, 0, 50, 50], [0, 0, 200, 200]])]
    pooled = RoIPooler(ModelSpec(), output_size=2, strides=(4, 8, 16, 32))(maps, boxes)
    assert pooled.shape == (3, 1, 2, 2)
    assert pooled.flatten(1).mean(1).tolist() == [2, 10, 1]


def test_a_cpu_pools_plain_roi_align_from_tables_and_nothing_else():
    maps = {str(i): torch.randn(1, 4, 32 >> i, 32 >> i) for i in range(5)}
    plain, strides = ModelSpec(), (4, 8, 16, 32)

    def table_of(spec):
        return RoIPooler(spec, output_size=2, strides=strides).table(maps)

    assert table_of(plain) is None, "there are gradients"
    boxes = [torch.tensor([[0.0, 0, 100, 90], [10, 10, 60, 70]])]
    with torch.inference_mode():
        assert table_of(plain.replace(roi_op="pool")) is None
        assert table_of(plain.replace(roi_reduce="max")) is None
        assert table_of(plain.replace(roi_sampling_ratio=0)) is None
        pooler = RoIPooler(plain, output_size=2, strides=strides)
        torch.testing.assert_close(pooler(table_of(plain), boxes), pooler(maps, boxes), rtol=0, atol=1e-5)
