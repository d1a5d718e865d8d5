"""Anchors: sides, positions and number, as torchvision and as detectron2 place them."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from model.heads.anchors import build_anchors
from model.spec import ModelSpec

SIZES = ((32,), (64,), (128,), (256,), (512,))
STRIDES = (4, 8, 16, 32, 64)


def anchors_of(generator, size, strides):
    """The anchors of one image of `size` (height, width), XYXY [N, 4], for maps of these strides."""
    features = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in strides]
    return generator(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]


def test_the_default_style_is_torchvisions():
    spec = ModelSpec(anchor_sizes=SIZES)
    reference = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5)
    anchors = anchors_of(build_anchors(spec, STRIDES), (128, 160), STRIDES)
    assert torch.equal(anchors, anchors_of(reference, (128, 160), STRIDES))


def test_exact_anchors_by_hand():
    spec = ModelSpec(neck="c5", anchor_sizes=((32,),), anchor_ratios=(0.5, 1.0), anchor_style="detectron2")
    first, square = anchors_of(build_anchors(spec, (32,)), (32, 64), (32,))[:2].tolist()
    # Area 32^2, height / width 1/2: 45.25 x 22.63 around (0, 0).
    assert first == pytest.approx([-22.627, -11.314, 22.627, 11.314], abs=1e-3)
    assert square == [-16, -16, 16, 16]


@pytest.mark.parametrize(("style", "step_px"), [("detectron2", 64), ("torchvision", 352 // 6)])
def test_exact_anchors_keep_the_stride_where_the_size_is_no_multiple(style, step_px):
    spec = ModelSpec(anchor_sizes=SIZES, anchor_ratios=(1.0,), anchor_style=style)
    # 352 px: 11 cells of stride 32, but 6 of stride 64.
    coarse = anchors_of(build_anchors(spec, STRIDES), (352, 352), STRIDES)[-36:]
    assert (coarse[1] - coarse[0]).tolist() == [step_px, 0, step_px, 0]


def test_three_sizes_and_three_ratios_make_nine_anchors_at_a_cell():
    spec = ModelSpec(anchor_sizes=tuple((s, s * 1.26, s * 1.59) for s in (32, 64, 128, 256, 512)))
    assert build_anchors(spec, STRIDES).num_anchors_per_location() == [9] * 5
