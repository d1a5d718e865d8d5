"""Box head: torchvision's names, shapes of logits and offsets, and its first predictions."""

import math

import pytest
import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from model.heads.box_head import build_box_head, split_by_class
from model.spec import ModelSpec
from tests.model.small_trainings import ONE_MAP

SPECS = {
    "two fully connected layers": ModelSpec(num_classes=3, box_head_channels=64),
    "convolutions and one layer": ModelSpec(
        num_classes=3, box_head_convs=2, box_head_conv_channels=16, box_head_fcs=1, box_head_channels=64
    ),
    "c4": ModelSpec(num_classes=3, neck="c4", **ONE_MAP),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [0, 5])
def test_each_roi_gets_logits_of_k_plus_1_classes_and_four_offsets_for_each(name, count):
    head, predictor = build_box_head(SPECS[name], in_channels=8, roi_size=7)
    logits, deltas = predictor(head(torch.rand(count, 8, 7, 7)))
    assert logits.shape == (count, 4) and deltas.shape == (count, 16)


def test_the_plain_head_has_torchvisions_names_and_shapes():
    head, predictor = build_box_head(SPECS["two fully connected layers"], in_channels=8, roi_size=7)
    TwoMLPHead(8 * 7**2, 64).load_state_dict(head.state_dict(), strict=True)
    FastRCNNPredictor(64, 4).load_state_dict(predictor.state_dict(), strict=True)


def test_c4_leaves_the_mean_over_the_map_to_the_predictor():
    head, _ = build_box_head(SPECS["c4"], in_channels=8, roi_size=7)
    maps = torch.rand(2, 8, 7, 7)
    torch.testing.assert_close(head(maps), maps.mean(dim=(2, 3)))


def test_a_fresh_head_takes_all_classes_for_alike_and_leaves_boxes_where_they_are():
    torch.manual_seed(0)
    head, predictor = build_box_head(ModelSpec(num_classes=80), in_channels=256, roi_size=7)
    with torch.no_grad():
        logits, deltas = predictor(head(torch.randn(16, 256, 7, 7)))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(16))
    assert loss.item() == pytest.approx(math.log(81), rel=0.05)
    assert deltas.abs().max() < 0.2


def test_offsets_are_split_by_class():
    deltas = torch.arange(24.0).reshape(2, 12)
    split = split_by_class(deltas)
    assert split.shape == (2, 3, 4) and split[1, 2].tolist() == [20, 21, 22, 23]
