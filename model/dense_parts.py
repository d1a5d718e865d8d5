"""Dense parts: backbone with RPN head, box, mask and keypoint branch as modules that an engine may run.

What depends on the data (anchors, box decoding, suppression, pooling, pasting) lies between them and is torch's always.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model.heads.mask_head import mask_probabilities
from model.spec import ModelSpec

# Masks that a CPU computes together. Their feature maps are the largest of a prediction, so this bounds its memory.
_MASKS_AT_ONCE = 32


@dataclass(frozen=True)
class DenseParts:
    """The parts of one network: torch modules, or what an engine made of them.

    Attributes:
        maps: Images [B, C, H, W] -> the feature maps, finest first, then the RPN's logits [B, A, h, w] of each map,
            then its offsets [B, 4 A, h, w].
        box: Pooled RoIs [N, C, P, P] -> class logits [N, K + 1] and offsets [N, 4 (K + 1)].
        mask: Pooled RoIs [N, C, P, P] and labels int64 [N], 1..K -> float32 [N, M, M], the probability that a pixel is
            inside the mask of the RoI's class; None without a mask head.
        keypoint: Pooled RoIs [N, C, P, P] -> heat maps (logits) [N, P, 56, 56]; None without a keypoint head.
    """

    maps: Callable[[Tensor], Sequence[Tensor]]
    box: Callable[[Tensor], Sequence[Tensor]]
    mask: Callable[[Tensor, Tensor], Tensor] | None
    keypoint: Callable[[Tensor], Tensor] | None


class MapsPart(nn.Module):
    """Backbone and RPN head."""

    def __init__(self, backbone: nn.Module, proposal_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.proposal_head = backbone, proposal_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `DenseParts.maps`."""
        maps = list(to_feature_maps(self.backbone(images)).values())
        logits, offsets = self.proposal_head(maps)
        return (*maps, *logits, *offsets)


class BoxPart(nn.Module):
    """Box branch: with neck "c4" the shared last stage, the head, the predictor."""

    def __init__(self, stage: nn.Module, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.stage, self.head, self.predictor = stage, head, predictor

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseParts.box`."""
        values = self.head(self.stage(rois))
        predictor: Any = self.predictor
        logits, offsets = predictor(values.to(predictor.cls_score.weight.dtype))
        return logits, offsets


class MaskPart(nn.Module):
    """Mask branch: with neck "c4" the shared last stage, the head, the predictor, the channel of each RoI's class.

    Attributes:
        in_pieces: Whether a CPU computes some masks at a time; a copy that is traced for any number must not.
    """

    def __init__(self, spec: ModelSpec, stage: nn.Module, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.spec, self.in_pieces = spec, True
        self.stage, self.head, self.predictor = stage, head, predictor

    def forward(self, rois: Tensor, labels: Tensor) -> Tensor:
        """See `DenseParts.mask`."""
        at_once = _MASKS_AT_ONCE if self.in_pieces and rois.device.type == "cpu" else None
        return mask_probabilities(self.spec, self.predictor, self.head(self.stage(rois)), labels, at_once=at_once)


def to_feature_maps(output: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A backbone's output (one map, a list or a dict of maps, finest first) as a dict of maps."""
    if isinstance(output, Tensor):
        output = [output]
    if not isinstance(output, Mapping):
        output = {str(index): feature for index, feature in enumerate(output)}
    return OrderedDict(output)
