"""The backbone: an image batch becomes feature maps that all have `out_channels` channels."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.backbones.body import Body, build_body, stage_channels
from model.backbones.norms import norm_layer
from model.spec import ModelSpec

_STAGE_STRIDES = (4, 8, 16, 32)
_PYRAMID_STRIDES = (4, 8, 16, 32, 64)


class Backbone(nn.Module):
    """A body, and with "fpn" a pyramid on it.

    Attributes:
        out_channels: Channels of every map.
        strides: Of each map, finest first; the RoIs are pooled from the first `num_roi_maps` of them.
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
        """[B, C, H, W] -> maps "0".. of the given strides; the pyramid's last is "pool"."""
        maps = self.body(images)
        if self.fpn is None:
            return OrderedDict([("0", maps.popitem()[1])])
        return self.fpn(maps)

    def train(self, mode: bool = True) -> Backbone:
        """Frozen stages stay in evaluation: their statistics do not move either."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for stage in range(self.frozen_stages) for module in self.body.stage_modules(stage)]


def build_backbone(spec: ModelSpec) -> tuple[Backbone, ResidualStage | None]:
    """The backbone, and with "c4" the last stage, which is not part of it but the head of every RoI."""
    body = build_body(spec)
    channels = stage_channels(body)
    if spec.neck == "fpn":
        fpn = FeaturePyramidNetwork(
            channels, spec.fpn_channels, LastLevelMaxPool(), norm_layer=norm_layer(spec.head_norm)
        )
        parts = {"fpn": fpn, "out_channels": spec.fpn_channels, "strides": _PYRAMID_STRIDES}
        return Backbone(body, frozen_stages=spec.frozen_stages, **parts), None
    if spec.neck == "c4":
        res5 = ResidualStage(OrderedDict((name, body[name]) for name in body.stages[4]), channels[3])
        res5.requires_grad_(spec.frozen_stages < 5)
        body = Body(dict(body.items()), body.stages[:4])
        parts = {"fpn": None, "out_channels": channels[2], "strides": (_STAGE_STRIDES[2],)}
        return Backbone(body, frozen_stages=spec.frozen_stages, **parts), res5
    stride = _STAGE_STRIDES[3] if spec.neck == "c5" else _STAGE_STRIDES[2]
    parts = {"fpn": None, "out_channels": channels[3], "strides": (stride,)}
    return Backbone(body, frozen_stages=spec.frozen_stages, **parts), None


class ResidualStage(nn.Sequential):
    """The last stage of a ResNet as the head of a RoI: halves the side, gives `out_channels` channels."""

    def __init__(self, layers: OrderedDict[str, nn.Module], out_channels: int) -> None:
        super().__init__(layers)
        self.out_channels = out_channels
