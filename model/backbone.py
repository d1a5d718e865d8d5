"""Backbones: an image becomes feature maps, all of `out_channels` channels."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.norm import norm_layer
from model.spec import ModelSpec

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


def build_backbone(spec: ModelSpec) -> nn.Module:
    """The backbone with its pyramid: a batch [B, C, H, W] becomes maps "0" .. "3" (strides 4 to 32) and "pool" (64)."""
    body = _build_body(spec)
    freeze_stages(body, spec.frozen_stages)
    widths = [_out_channels(getattr(body, stage)) for stage in STAGES[1:]]
    return BackboneWithFPN(
        body,
        return_layers={stage: str(index) for index, stage in enumerate(STAGES[1:])},
        in_channels_list=widths,
        out_channels=spec.fpn_channels,
        extra_blocks=LastLevelMaxPool(),
    )


def freeze_stages(body: nn.Module, frozen_stages: int) -> None:
    """Take the first `frozen_stages` stages of a ResNet out of training."""
    frozen = STAGES[:frozen_stages] + (("bn1",) if frozen_stages else ())
    for name in frozen:
        getattr(body, name).requires_grad_(False)


def _build_body(spec: ModelSpec) -> nn.Module:
    if spec.backbone == "tiny":
        body: nn.Module = TinyResNet(norm=spec.norm)
    else:
        body = getattr(resnet, spec.backbone)(weights=None, norm_layer=norm_layer(spec.norm))
    if spec.in_channels != 3:
        width = body.conv1.out_channels
        body.conv1 = nn.Conv2d(spec.in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    return body


def _out_channels(stage: nn.Module) -> int:
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


class TinyResNet(nn.Module):
    """A ResNet of four stages of one basic block each, 32 to 256 channels wide, strides 4 to 32."""

    def __init__(self, *, norm: str, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = widths[0]
        for index, width in enumerate(widths, start=1):
            stride = 1 if index == 1 else 2
            shortcut = None
            if stride != 1 or channels != width:
                shortcut = nn.Sequential(resnet.conv1x1(channels, width, stride), make_norm(width))
            block = resnet.BasicBlock(channels, width, stride, shortcut, norm_layer=make_norm)
            self.add_module(f"layer{index}", nn.Sequential(block))
            channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
