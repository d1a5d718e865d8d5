"""Backbone: a convolutional body and optionally a feature pyramid (FPN); images in, feature maps out."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from model.backbones.body import Body, build_body, stage_channels
from model.backbones.norms import norm_layer
from model.spec import ModelSpec
from model.vision import FeaturePyramidNetwork, LastLevelMaxPool

_STAGE_STRIDES = (4, 8, 16, 32)
_PYRAMID_STRIDES = (4, 8, 16, 32, 64)


class Backbone(nn.Module):
    """A body, and with neck "fpn" a feature pyramid on top of it.

    Attributes:
        out_channels: Channels of every feature map.
        strides: Image pixels per map pixel of each map, finest first.
        num_roi_maps: How many of the maps, from the finest on, RoIs are pooled from.
    """

    def __init__(
        self,
        body: Body,
        *,
        fpn: nn.Module | None,
        out_channels: int,
        strides: tuple[int, ...],
        frozen_stages: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels
        self.strides = strides
        self.num_roi_maps = len(strides) if fpn is None else len(strides) - 1
        self.frozen_stages = frozen_stages
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """[B, C, H, W] -> maps "0", "1", ... of the backbone's strides; the pyramid's last is "pool"."""
        maps = self.body(images)
        if self.fpn is None:
            return OrderedDict([("0", maps.popitem()[1])])
        return self.fpn(maps)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all but the frozen stages, which stay in evaluation: their statistics do not move either."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for stage in range(self.frozen_stages) for module in self.body.stage_modules(stage)]


def build_backbone(spec: ModelSpec) -> tuple[Backbone, ResidualStage | None]:
    """The backbone, and with neck "c4" the last stage, which is no part of it but runs on every RoI."""
    body = build_body(spec)
    channels, frozen_stages = stage_channels(body), spec.frozen_stages
    if spec.neck == "fpn":
        fpn = FeaturePyramidNetwork(
            channels, spec.fpn_channels, LastLevelMaxPool(), norm_layer=norm_layer(spec.head_norm)
        )
        return Backbone(
            body, fpn=fpn, out_channels=spec.fpn_channels, strides=_PYRAMID_STRIDES, frozen_stages=frozen_stages
        ), None
    if spec.neck == "c4":
        res5 = ResidualStage(OrderedDict((name, body[name]) for name in body.stages[4]), channels[3])
        res5.requires_grad_(spec.frozen_stages < 5)
        body = Body(dict(body.items()), body.stages[:4])
        strides = (_STAGE_STRIDES[2],)
        return Backbone(body, fpn=None, out_channels=channels[2], strides=strides, frozen_stages=frozen_stages), res5
    # "dc5" dilates the last stage, which so keeps the stride of the stage before it.
    strides = (_STAGE_STRIDES[3] if spec.neck == "c5" else _STAGE_STRIDES[2],)
    return Backbone(body, fpn=None, out_channels=channels[3], strides=strides, frozen_stages=frozen_stages), None


class ResidualStage(nn.Sequential):
    """The last stage of a ResNet, run on RoIs: halves the side and gives `out_channels` channels."""

    def __init__(self, layers: OrderedDict[str, nn.Module], out_channels: int) -> None:
        super().__init__(layers)
        self.out_channels = out_channels
