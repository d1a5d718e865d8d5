"""Prediction-only networks: batch norms are folded and convolutions are faster, and the outputs are the same."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from model.heads.rpn import ProposalHead
from model.inference.fuse import LeanProposalHead, LeanPyramid, PredictionConv2d, for_prediction
from model.inference.winograd import conv3x3
from model.network import build_model
from model.spec import ModelSpec

QUICK: dict[str, Any] = {
    "image_min_size": 64,
    "image_max_size": 96,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_test": 20,
    "score_threshold": 0.0,
    "max_detections": 20,
}
CASES = {
    "resnet18 batch": ModelSpec(num_classes=2, backbone="resnet18", norm="batch", **QUICK),
    "resnet50 frozen": ModelSpec(num_classes=2, norm="frozen_batch", stride_in_1x1=True, **QUICK),
    "heads too": ModelSpec(
        num_classes=2,
        backbone="resnet18",
        norm="sync_batch",
        head_norm="batch",
        box_head_convs=2,
        box_head_fcs=1,
        **QUICK,
    ),
    "c4": ModelSpec(
        num_classes=2,
        neck="c4",
        norm="batch",
        anchor_sizes=((32, 64),),
        mask_head_channels=(),
        mask_output_size=14,
        **QUICK,
    ),
    "mobilenet": ModelSpec(num_classes=2, backbone="mobilenet_v3_large", norm="batch", **QUICK),
    "efficientnet": ModelSpec(num_classes=2, backbone="efficientnet_b0", norm="batch", **QUICK),
    "vgg": ModelSpec(num_classes=2, backbone="vgg16", **QUICK),
    "squeeze": ModelSpec(num_classes=2, backbone="resnet18", norm="batch", attention="squeeze_excite", **QUICK),
    "group": ModelSpec.tiny(num_classes=2, **QUICK),
}


def network_of(spec):
    """A random network whose norms have statistics and scales other than 0 and 1."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)):
            for name, low, high in (("running_mean", -0.1, 0.1), ("running_var", 0.5, 2), ("weight", 0.5, 1.2)):
                getattr(module, name).data.uniform_(low, high, generator=generator)
    return network


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "c4" else name for name in CASES]
)
def test_the_copy_has_no_batch_norm_and_equal_feature_maps_and_scores(name):
    network = network_of(CASES[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = for_prediction(network)
    norms = [type(module).__name__ for module in folded.modules() if "BatchNorm" in type(module).__name__]
    assert norms == []
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected_maps, maps = network.backbone(images).values(), folded.backbone(images).values()
        for feature, expected in zip(maps, expected_maps, strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        references, detections = (net.detect(list(images), [(64, 96)] * 2)[0] for net in (network, folded))
    for detected, reference in zip(detections, references, strict=True):
        assert len(detected["scores"]) == len(reference["scores"]) > 0
        torch.testing.assert_close(detected["scores"], reference["scores"], rtol=0, atol=1e-3)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the network itself was changed"


@pytest.mark.parametrize(("stride", "bias"), [(1, True), (2, True), ((1, 2), False)])
def test_a_matrix_product_gives_the_pointwise_convolutions_values(stride, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, kernel_size=1, stride=stride, bias=bias)
    fast_conv = PredictionConv2d(conv)
    maps = torch.randn(3, 24, 13, 21)
    with torch.inference_mode():
        expected, output = conv(maps), fast_conv(maps)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
        assert torch.equal(fast_conv(maps[:1]), output[:1]), "a map of a batch is computed by itself"
        assert fast_conv(maps[:0]).shape == expected[:0].shape


def test_grouped_and_padded_convolutions_keep_their_values():
    for conv in (nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3, padding=1)):
        maps = torch.randn(2, 8, 9, 9)
        torch.testing.assert_close(PredictionConv2d(conv)(maps), conv(maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 14), (9, 14), (5, 7), (15, 21)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_lean_pyramid_gives_the_maps_of_torchvisions(size, memory_format):
    torch.manual_seed(0)
    pyramid = FeaturePyramidNetwork([6, 6], 8)
    sizes = {"0": size, "1": (5, 7)}
    maps = {name: torch.randn(2, 6, *shape).to(memory_format=memory_format) for name, shape in sizes.items()}
    with torch.inference_mode():
        expected = pyramid(OrderedDict(maps))
        lean = LeanPyramid(pyramid)(OrderedDict(maps))
    assert list(lean) == list(expected)
    for name, level in lean.items():
        torch.testing.assert_close(level, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 23, 31), (20, 14, 14), (2, 14, 14), (0, 28, 28)])
def test_a_wide_convolution_keeps_its_values(shape):
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 288, kernel_size=3, padding=1)
    fast_conv = PredictionConv2d(conv)
    maps = torch.randn(shape[0], 256, *shape[1:])
    with torch.inference_mode():
        expected, output = conv(maps), fast_conv(maps)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4 * float(expected.std()) if len(maps) else 0.0)
        if shape[1] * shape[2] > 512:
            assert torch.equal(fast_conv(maps[:1]), output[:1]), "a map of a batch is computed by itself"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(256, 256, 3, padding=1, stride=2),
        nn.Conv2d(256, 256, 3, padding=2, dilation=2),
        nn.Conv2d(256, 256, 3, padding=1, groups=256),
        nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 256, 3, padding=1),
    ],
    ids=["stride", "dilation", "groups", "reflected edges", "narrow"],
)
def test_other_convolutions_keep_every_bit(conv):
    maps = torch.randn(1, conv.in_channels, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(PredictionConv2d(conv)(maps), conv(maps))


@pytest.mark.parametrize(("shape", "uses_it"), [((1, 64, 64), True), ((20, 14, 14), True), ((2, 14, 14), False)])
def test_plain_wide_convolutions_of_many_pixels_use_winograds_algorithm(shape, uses_it):
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1)
    maps = torch.randn(shape[0], 256, *shape[1:]).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = conv3x3(maps, conv.weight, conv.bias) if uses_it else conv(maps)
        assert torch.equal(PredictionConv2d(conv)(maps), expected)


@pytest.mark.parametrize("num_convs", [1, 2])
@pytest.mark.parametrize("height", [1, 63, 64, 65, 150])
def test_the_rpn_head_in_strips_equals_the_head_on_whole_maps(num_convs, height):
    torch.manual_seed(0)
    head = ProposalHead(16, 3, num_convs=num_convs, width=16)
    maps = [torch.randn(2, 16, height, 20), torch.randn(2, 16, 5, 3)]
    with torch.inference_mode():
        for outputs, expected in zip(LeanProposalHead(head)(maps), head(maps), strict=True):
            for level_output, level_expected in zip(outputs, expected, strict=True):
                torch.testing.assert_close(level_output, level_expected, rtol=0, atol=1e-6)


def test_bfloat16_keeps_scores_and_boxes_in_float32():
    network = network_of(CASES["group"])  # the tiny network: not every processor is quick at bfloat16
    fast = for_prediction(network, torch.bfloat16)
    weight = fast.backbone.body["conv1"].weight
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        detected = fast.detect([torch.rand(3, 64, 96)], [(64, 96)])[0][0]
    assert len(detected["scores"]) > 0
    assert {detected[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
