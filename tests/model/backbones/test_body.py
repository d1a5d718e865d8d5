"""Convolutional bodies: torchvision's names and shapes, strides, dilation, attention blocks."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from model.backbones.body import build_body, first_conv, stage_channels
from model.spec import BACKBONES, RESNETS
from tests.model.small_trainings import backbone_spec


@pytest.mark.parametrize("name", BACKBONES)
def test_each_stage_halves_the_map_down_to_stride_32(name):
    # On the meta device: only shapes matter here.
    with torch.device("meta"):
        body = build_body(backbone_spec(name))
        maps = body(torch.empty(2, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in maps.values()] == stage_channels(body)


def test_dc5_dilates_the_last_stage_and_stride_in_1x1_moves_the_stride():
    body = build_body(backbone_spec("resnet50", neck="dc5", anchor_sizes=((32,),), stride_in_1x1=True))
    blocks = [module for module in body["layer4"].modules() if isinstance(module, resnet.Bottleneck)]
    assert [block.conv2.dilation for block in blocks] == [(2, 2)] * 3
    assert [block.conv2.padding for block in blocks] == [(2, 2)] * 3
    first_block = body.get_submodule("layer3.0")
    assert first_block.conv1.stride == (2, 2) and first_block.conv2.stride == (1, 1)
    assert build_body(backbone_spec("resnet50")).get_submodule("layer3.0").conv2.stride == (2, 2)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "resnet152"])
def test_resnets_have_torchvisions_names_and_shapes(name):
    assert name in RESNETS
    with torch.device("meta"):
        reference = getattr(resnet, name)(weights=None).state_dict()
        ours = build_body(backbone_spec(name)).state_dict()
    shapes = {key: value.shape for key, value in reference.items() if not key.startswith("fc.")}
    assert shapes == {key: value.shape for key, value in ours.items()}


def test_the_stem_takes_any_number_of_channels():
    spec = backbone_spec("resnet18", in_channels=4, image_mean=(0.5,) * 4, image_std=(0.3,) * 4)
    body = build_body(spec)
    name, conv = first_conv(body)
    assert name == "conv1" and tuple(conv.weight.shape) == (64, 4, 7, 7) and conv.stride == (2, 2)
    assert body["conv1"] is conv


def test_norms_have_the_epsilon_of_the_published_weights():
    def epsilon(**changes):
        layers = build_body(backbone_spec("mobilenet_v3_large", **changes)).modules()
        return {layer.eps for layer in layers if isinstance(layer, nn.BatchNorm2d)}

    assert epsilon() == {1e-3}
    assert epsilon(norm_eps=1e-5) == {1e-5}


def test_attention_starts_as_the_identity():
    torch.manual_seed(0)
    plain = build_body(backbone_spec("resnet18")).eval()
    attentive = build_body(backbone_spec("resnet18", attention="squeeze_excite")).eval()
    # The weights keep their names, so they load.
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("attention") for name in missing)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for before, after in zip(plain(image).values(), attentive(image).values()):
            torch.testing.assert_close(before, after)
