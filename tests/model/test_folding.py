"""Networks made for prediction: less work, the same outputs."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model import folding
from model.folding import PredictionConv2d, for_prediction
from model.network import build_model
from model.spec import ModelSpec

QUICK = {
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
    """A network whose norms have seen something: statistics and scales that are not 0 and 1."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)):
            for name, low, high in (("running_mean", -0.1, 0.1), ("running_var", 0.5, 2), ("weight", 0.5, 1.2)):
                getattr(module, name).data.uniform_(low, high, generator=generator)
    return network


@pytest.mark.parametrize("name", CASES)
def test_folded_maps_are_the_networks_own(name):
    network = network_of(CASES[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = for_prediction(network)
    norms = [type(module).__name__ for module in folded.modules() if "BatchNorm" in type(module).__name__]
    assert norms == []
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for want, found in zip(network.backbone(images).values(), folded.backbone(images).values(), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4 * float(want.std()))
        wanted, found = network.detect(list(images))[0], folded.detect(list(images))[0]
    for one, other in zip(wanted, found, strict=True):
        assert len(one["scores"]) == len(other["scores"]) > 0
        torch.testing.assert_close(other["scores"], one["scores"], rtol=0, atol=1e-3)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the network itself was changed"


@pytest.mark.parametrize("shape", [(1, 64, 40, 50), (3, 64, 23, 31), (20, 64, 14, 14), (2, 64, 14, 14)])
def test_winograds_way_gives_the_convolutions_values(shape):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 96, kernel_size=3, padding=1)
    other = PredictionConv2d(conv)
    maps = torch.randn(shape)
    with torch.inference_mode():
        want, found = conv(maps), other(maps)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-4 * float(want.std()))
        if shape[2] * shape[3] > 512:
            assert torch.equal(other(maps[:1]), found[:1]), "a map of a batch is computed by itself"


def test_only_plain_wide_convolutions_take_winograds_way():
    plain = {"kernel_size": 3, "padding": 1}
    assert PredictionConv2d(nn.Conv2d(64, 64, **plain)).has_winograd == folding._has_nnpack()
    for conv in (
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(16, 64, 3, padding=1),
    ):
        assert not PredictionConv2d(conv).has_winograd


def test_bfloat16_keeps_scores_and_boxes_in_float32():
    network = network_of(CASES["resnet18 batch"])
    fast = for_prediction(network, torch.bfloat16)
    assert fast.backbone.body["conv1"].weight.dtype == torch.bfloat16
    with torch.inference_mode():
        found = fast.detect([torch.rand(3, 64, 96)])[0][0]
    assert len(found["scores"]) > 0
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
