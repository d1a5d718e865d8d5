"""Convolutional bodies: torchvision's classification networks cut into a stem and four stages.

Each is a `Body` whose children have their names in torchvision, so that published weights load.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from model.backbones.norms import norm_layer
from model.spec import RESNETS, ModelSpec
from model.vision import SqueezeExcitation, models, resnet, vgg

_RESNET_LAYERS = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
_RESNET_STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
# The first layer of each of the five stages (and the end) among the numbered layers of torchvision's `features`, such
# that the stages end at strides (2 or 4), 4, 8, 16 and 32.
_FEATURE_STAGES = {
    "mobilenet_v3_large": (0, 2, 4, 7, 13, 17),
    # The last layer of an EfficientNet is left out: it only widens the map for the classifier.
    "efficientnet": (0, 2, 3, 4, 6, 8),
    "vgg16": (0, 10, 16, 23, 30, 31),
}
# Epsilon of the batch norm that torchvision's weights were trained with, where it is not 1e-5.
_NORM_EPS = {"mobilenet_v3_large": 1e-3}


class Body(nn.ModuleDict):
    """Layers by name, in order, cut into stages; stage 0 is the stem.

    Args:
        layers: In the order in which they are applied.
        stages: The names of each stage's layers; names left out are not part of the body.
    """

    def __init__(self, layers: dict[str, nn.Module], stages: tuple[tuple[str, ...], ...]) -> None:
        super().__init__({name: layers[name] for stage in stages for name in stage})
        self.stages = stages

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """[B, C, H, W] -> the map at the end of each stage after the stem, named "0", "1", ..., finest first."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = images
        for index, stage in enumerate(self.stages):
            for name in stage:
                x = self[name](x)
            if index > 0:
                maps[str(index - 1)] = x
        return maps

    def stage_modules(self, index: int) -> list[nn.Module]:
        """The layers of one stage; none where the body ends before it."""
        return [self[name] for name in self.stages[index]] if index < len(self.stages) else []


def build_body(spec: ModelSpec) -> Body:
    """All five stages of the spec's backbone, with random weights."""
    body = _build_plain(spec)
    if spec.in_channels != 3:
        _replace_stem(body, spec.in_channels)
    if spec.attention == "squeeze_excite":
        _add_squeeze_excite(body)
    return body


def stage_channels(body: Body) -> list[int]:
    """Channels of each map of a body, stem excluded; a stage without convolutions keeps those of the stage before."""
    channels: list[int] = []
    for index in range(1, len(body.stages)):
        layers = [module for layer in body.stage_modules(index) for module in layer.modules()]
        widths = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
        channels.append(widths[-1] if widths else channels[-1])
    return channels


def _build_plain(spec: ModelSpec) -> Body:
    eps = _NORM_EPS.get(spec.backbone, 1e-5) if spec.norm_eps is None else spec.norm_eps
    make_norm = norm_layer(spec.norm, eps=eps)
    assert make_norm is not None, "spec.norm has no 'none'"
    if spec.backbone == "tiny":
        return Body(_tiny_layers(make_norm), _RESNET_STAGES)
    if spec.backbone in RESNETS:
        return Body(dict(_build_resnet(spec, make_norm).named_children()), _RESNET_STAGES)
    if spec.backbone == "vgg16":
        features = vgg.make_layers(vgg.cfgs["D"])
        _initialise(features)
    else:
        features = getattr(models, spec.backbone)(weights=None, norm_layer=make_norm).features
    starts = _FEATURE_STAGES[re.sub(r"_b\d$", "", spec.backbone)]
    stages = tuple(tuple(map(str, range(start, end))) for start, end in pairwise(starts))
    return Body(dict(features.named_children()), stages)


def _build_resnet(spec: ModelSpec, make_norm: Callable[[int], nn.Module]) -> nn.Module:
    ((depth, groups, width),) = re.findall(r"^resnex?t(\d+)(?:_(\d+)x(\d+)d)?$", spec.backbone)
    network = resnet.ResNet(
        resnet.BasicBlock if depth in ("18", "34") else resnet.Bottleneck,
        list(_RESNET_LAYERS[depth]),
        num_classes=1,
        groups=int(groups or 1),
        width_per_group=int(width or 64),
        replace_stride_with_dilation=[False, False, spec.neck == "dc5"],
        norm_layer=make_norm,
    )
    if spec.neck == "dc5":
        # torchvision leaves the first block undilated; the published DC5 networks dilate it too.
        first_conv2 = network.layer4[0].conv2
        first_conv2.dilation = first_conv2.padding = (2, 2)
    if spec.stride_in_1x1:
        for block in network.modules():
            if isinstance(block, resnet.Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return network


def _tiny_layers(
    make_norm: Callable[[int], nn.Module], widths: tuple[int, ...] = (32, 64, 128, 256)
) -> dict[str, nn.Module]:
    """Layers of a ResNet with one basic block in each stage, 32 to 256 channels wide."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False),
        "bn1": make_norm(widths[0]),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    }
    in_width = widths[0]
    for index, width in enumerate(widths, start=1):
        stride = 1 if index == 1 else 2
        shortcut = None
        if in_width != width:
            shortcut = nn.Sequential(resnet.conv1x1(in_width, width, stride), make_norm(width))
        block = resnet.BasicBlock(in_width, width, stride, shortcut, norm_layer=make_norm)
        layers[f"layer{index}"] = nn.Sequential(block)
        in_width = width
    for layer in layers.values():
        _initialise(layer)
    return layers


def _initialise(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def first_conv(body: Body) -> tuple[str, nn.Conv2d]:
    """The convolution that is applied to the image, and its name inside the body: (name, module)."""
    return next((name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d))


def _replace_stem(body: Body, in_channels: int) -> None:
    name, conv = first_conv(body)
    old: Any = conv  # torch declares kernel size, stride and padding as tuples of any length, but takes pairs
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    body.set_submodule(name, new)


class DoubledSigmoid(nn.Sigmoid):
    """2 sigmoid(x), which is 1 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """2 sigmoid(x), element by element, in (0, 2)."""
        return 2 * super().forward(x)


def _add_squeeze_excite(body: Body) -> None:
    """Add a squeeze-and-excitation block (Hu et al., 2018) at the end of each stage after the stem.

    Preferred to CBAM and non-local blocks because it costs next to nothing at any image size (a non-local block's
    memory grows with the square of the number of pixels). It starts as the identity, so that published weights keep
    their output.
    """
    for index, channels in enumerate(stage_channels(body), start=1):
        block = SqueezeExcitation(channels, max(channels // 16, 8), scale_activation=DoubledSigmoid)
        nn.init.zeros_(block.fc2.weight)
        nn.init.zeros_(block.fc2.bias)
        # A separate layer at the end of the stage: no other layer changes its name.
        name = f"attention{index}"
        body[name] = block
        body.stages = (*body.stages[:index], (*body.stages[index], name), *body.stages[index + 1 :])
