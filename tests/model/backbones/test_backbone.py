"""Backbones: strides and channels of their maps, and frozen stages."""

import pytest
import torch

from model.backbones.backbone import build_backbone
from model.spec import BACKBONES
from tests.model.small_trainings import QUICK, backbone_spec, build, samples


@pytest.mark.parametrize("name", BACKBONES)
def test_the_pyramid_has_five_maps_of_the_stated_strides(name):
    # On the meta device: only shapes matter here.
    with torch.device("meta"):
        backbone, _ = build_backbone(backbone_spec(name))
        pyramid = backbone(torch.empty(2, 3, 128, 192))
    assert list(pyramid) == ["0", "1", "2", "3", "pool"]
    for feature, stride in zip(pyramid.values(), backbone.strides, strict=True):
        assert tuple(feature.shape) == (2, 64, 128 // stride, 192 // stride)


@pytest.mark.parametrize(("neck", "stride", "channels"), [("c4", 16, 1024), ("c5", 32, 2048), ("dc5", 16, 2048)])
def test_other_necks_have_one_map(neck, stride, channels):
    with torch.device("meta"):
        backbone, res5 = build_backbone(backbone_spec("resnet50", neck=neck, anchor_sizes=((32,),)))
        maps = backbone(torch.empty(1, 3, 64, 128))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {"0": (channels, 64 // stride, 128 // stride)}
    assert backbone.strides == (stride,) and (res5 is not None) == (neck == "c4")
    if res5 is not None:
        with torch.device("meta"):
            assert res5(torch.empty(3, 1024, 14, 14)).shape == (3, 2048, 7, 7)


@pytest.mark.parametrize(
    ("name", "frozen"), [("tiny", 2), ("mobilenet_v3_large", 1), ("efficientnet_b0", 3), ("tiny", 5)]
)
def test_frozen_stages_do_not_move(name, frozen):
    model = build(backbone_spec(name, frozen_stages=frozen, **QUICK)).train()
    body = model.backbone.body
    before = {key: tensor.clone() for key, tensor in body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.stack(list(model(*samples()).values())).sum().backward()
    optimizer.step()
    frozen_layers = {layer for stage in body.stages[:frozen] for layer in stage}
    moved = {key.split(".")[0] for key, tensor in body.state_dict().items() if not torch.equal(tensor, before[key])}
    # Weights and batch statistics both.
    assert not moved & frozen_layers
    assert moved or frozen == 5


def test_a_frozen_last_stage_is_frozen_in_the_heads_too():
    model = build(backbone_spec("resnet18", neck="c4", anchor_sizes=((32,),), frozen_stages=5))
    assert not any(parameter.requires_grad for parameter in model.roi_heads.res5.parameters())
