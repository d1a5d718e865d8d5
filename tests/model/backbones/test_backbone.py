"""Bodies and backbones: strides, freezing, norms, stems, attention."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.backbone import build_backbone
from model.backbones.body import build_body, stage_channels
from model.backbones.norms import norm_layer
from model.spec import BACKBONES, RESNETS, ModelSpec
from tests.model.small_trainings import QUICK, build, samples


def spec_of(backbone, **changes):
    return ModelSpec.tiny(num_classes=2, **{"backbone": backbone, "norm": "batch", **changes})


@pytest.mark.parametrize("name", BACKBONES)
def test_strides_and_channels(name):
    # Without memory or arithmetic: shapes are all that counts here.
    with torch.device("meta"):
        body = build_body(spec_of(name))
        maps = body(torch.empty(2, 3, 64, 96))
        backbone, _ = build_backbone(spec_of(name))
        pyramid = backbone(torch.empty(2, 3, 128, 192))
    assert [tuple(m.shape[-2:]) for m in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in maps.values()] == stage_channels(body)
    assert list(pyramid) == ["0", "1", "2", "3", "pool"]
    for feature, stride in zip(pyramid.values(), backbone.strides, strict=True):
        assert tuple(feature.shape) == (2, 64, 128 // stride, 192 // stride)


@pytest.mark.parametrize(("neck", "stride", "channels"), [("c4", 16, 1024), ("c5", 32, 2048), ("dc5", 16, 2048)])
def test_one_map(neck, stride, channels):
    with torch.device("meta"):
        backbone, res5 = build_backbone(spec_of("resnet50", neck=neck, anchor_sizes=((32,),)))
        maps = backbone(torch.empty(1, 3, 64, 128))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {"0": (channels, 64 // stride, 128 // stride)}
    assert backbone.strides == (stride,) and (res5 is not None) == (neck == "c4")
    if res5 is not None:
        with torch.device("meta"):
            assert res5(torch.empty(3, 1024, 14, 14)).shape == (3, 2048, 7, 7)


def test_dilation_and_first_strides():
    body = build_body(spec_of("resnet50", neck="dc5", anchor_sizes=((32,),), stride_in_1x1=True))
    blocks = [module for module in body["layer4"] if isinstance(module, resnet.Bottleneck)]
    assert [block.conv2.dilation for block in blocks] == [(2, 2)] * 3
    assert [block.conv2.padding for block in blocks] == [(2, 2)] * 3
    assert body["layer3"][0].conv1.stride == (2, 2) and body["layer3"][0].conv2.stride == (1, 1)
    assert build_body(spec_of("resnet50"))["layer3"][0].conv2.stride == (2, 2)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "resnet152"])
def test_bodies_are_torchvisions(name):
    assert name in RESNETS
    with torch.device("meta"):
        theirs = getattr(resnet, name)(weights=None).state_dict()
        ours = build_body(spec_of(name)).state_dict()
    theirs = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert theirs == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize(
    ("name", "frozen"), [("tiny", 2), ("mobilenet_v3_large", 1), ("efficientnet_b0", 3), ("tiny", 5)]
)
def test_frozen_stages_do_not_move(name, frozen):
    model = build(spec_of(name, frozen_stages=frozen, **QUICK)).train()
    body = model.backbone.body
    before = {key: tensor.clone() for key, tensor in body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(*samples()).values()).backward()
    optimizer.step()
    frozen_layers = {layer for stage in body.stages[:frozen] for layer in stage}
    moved = {key.split(".")[0] for key, tensor in body.state_dict().items() if not torch.equal(tensor, before[key])}
    # Weights and batch statistics both.
    assert not moved & frozen_layers
    assert moved or frozen == 5


def test_a_frozen_last_stage_is_frozen_in_the_heads_too():
    model = build(spec_of("resnet18", neck="c4", anchor_sizes=((32,),), frozen_stages=5))
    assert not any(parameter.requires_grad for parameter in model.roi_heads.res5.parameters())


def test_norms():
    kinds = {"frozen_batch": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "sync_batch": nn.SyncBatchNorm}
    for name, kind in {**kinds, "group": nn.GroupNorm}.items():
        layer = norm_layer(name, eps=0.5)(48)
        assert type(layer) is kind and layer.eps == 0.5
    assert norm_layer("none") is None
    assert norm_layer("group")(48).num_groups == 16
    assert build_body(spec_of("mobilenet_v3_large"))["0"][1].eps == 1e-3
    assert build_body(spec_of("mobilenet_v3_large", norm_eps=1e-5))["0"][1].eps == 1e-5


def test_attention_starts_as_the_identity():
    torch.manual_seed(0)
    plain = build_body(spec_of("resnet18")).eval()
    attentive = build_body(spec_of("resnet18", attention="squeeze_excite")).eval()
    # The weights keep their names, so they load.
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("attention") for name in missing)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for before, after in zip(plain(image).values(), attentive(image).values()):
            torch.testing.assert_close(before, after)


def test_bgr_networks_see_the_channels_the_other_way_round():
    torch.manual_seed(0)
    means = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}
    rgb = build(spec_of("tiny", **means)).eval()
    backwards = {name: values[::-1] for name, values in means.items()}
    bgr = build(spec_of("tiny", channel_order="bgr", **backwards)).eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(rgb.transform([image])[0].tensors, bgr.transform([image])[0].tensors.flip(1))
