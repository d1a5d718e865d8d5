"""Box head: class logits and box offsets of each RoI."""

from __future__ import annotations

from torch import Tensor, nn

from model.backbones.norms import norm_layer
from model.spec import ModelSpec
from model.vision import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead


def build_box_head(spec: ModelSpec, in_channels: int, roi_size: int) -> tuple[nn.Module, nn.Module]:
    """The head, [N, C, P, P] -> [N, D], and the predictor, [N, D] -> logits [N, K + 1] and offsets [N, 4 (K + 1)].

    With neck "c4" the backbone's last stage replaces the head's layers, and the head is the mean over its map.
    """
    if spec.neck == "c4":
        head: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        width = in_channels
    else:
        head, width = _fully_connected(spec, in_channels, roi_size), spec.box_head_channels
        # He et al. (2015). torch's default is six times smaller, and a head trained from scratch then learns late.
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    predictor = FastRCNNPredictor(width, spec.num_classes + 1)
    # Small weights: at first all classes are equally likely and boxes are not moved.
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(layer.bias)
    return head, predictor


def _fully_connected(spec: ModelSpec, in_channels: int, roi_size: int) -> nn.Module:
    if spec.box_head_convs == 0 and spec.box_head_fcs == 2:
        # torchvision's plain head, so that its weights load.
        return TwoMLPHead(in_channels * roi_size**2, spec.box_head_channels)
    return FastRCNNConvFCHead(
        (in_channels, roi_size, roi_size),
        [spec.box_head_conv_channels] * spec.box_head_convs,
        [spec.box_head_channels] * spec.box_head_fcs,
        norm_layer=norm_layer(spec.head_norm),
    )


def split_by_class(deltas: Tensor) -> Tensor:
    """[N, 4 (K + 1)] offsets as [N, K + 1, 4]."""
    return deltas.unflatten(1, (-1, 4))
