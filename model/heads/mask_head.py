"""Mask head: an M x M mask over each RoI for each class, or one for all classes, and its training targets."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.norms import norm_layer
from model.spec import ModelSpec
from model.vision import MaskRCNNHeads, roi_align


def mask_roi_size(spec: ModelSpec) -> int:
    """Side of the pooled RoI, in bins, that is the mask head's input."""
    return spec.mask_output_size // 2 if spec.mask_head == "fcn" else 7


def num_mask_channels(spec: ModelSpec) -> int:
    """Output channels of the mask head.

    K + 1, the first of them the background's (unused by sigmoid masks). Class-agnostic: 1, or with softmax 2
    (background and mask).
    """
    if spec.mask_class_agnostic:
        return 1 if spec.mask_activation == "sigmoid" else 2
    return spec.num_classes + 1


def build_mask_head(spec: ModelSpec, in_channels: int, roi_size: int) -> tuple[nn.Module, nn.Module]:
    """The head and the predictor: together [N, C, P, P] -> mask logits [N, channels, M, M]."""
    channels = num_mask_channels(spec)
    if spec.mask_head == "mlp":
        widths = [in_channels * roi_size**2, *spec.mask_head_channels]
        layers: list[nn.Module] = [nn.Flatten()]
        for in_width, out_width in pairwise(widths):
            layers += [nn.Linear(in_width, out_width), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers), MlpPredictor(widths[-1], channels, spec.mask_output_size)
    head = MaskRCNNHeads(in_channels, spec.mask_head_channels, 1, norm_layer=norm_layer(spec.head_norm))
    width = spec.mask_head_channels[-1] if spec.mask_head_channels else in_channels
    doublings = (spec.mask_output_size // roi_size).bit_length() - 1
    return head, DeconvPredictor(width, spec.mask_deconv_channels, channels, doublings)


class DeconvPredictor(nn.Sequential):
    """Deconvolutions that double the side each, then a 1x1 convolution; torchvision's names if there is one of them."""

    def __init__(self, in_channels: int, width: int, out_channels: int, doublings: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(doublings):
            last = index == doublings - 1
            name = "conv5_mask" if last else f"deconv{index}"
            layers[name] = nn.ConvTranspose2d(in_channels, width, kernel_size=2, stride=2)
            layers["relu" if last else f"relu{index}"] = nn.ReLU(inplace=True)
            in_channels = width
        layers["mask_fcn_logits"] = logits = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        _start_at_one_half(logits)


class MlpPredictor(nn.Module):
    """One fully connected layer that gives all pixels of all masks (He et al., 2017, table 2e)."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.shape = (out_channels, size, size)
        self.mask_logits = nn.Linear(in_channels, out_channels * size * size)
        _start_at_one_half(self.mask_logits)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> logits [N, channels, M, M]."""
        return self.mask_logits(x).unflatten(1, self.shape)


def _start_at_one_half(logits: nn.Conv2d | nn.Linear) -> None:
    """Initialise so that masks are first one half everywhere; torchvision's values start with a loss of about 6."""
    nn.init.normal_(logits.weight, std=0.001)
    if logits.bias is not None:
        nn.init.zeros_(logits.bias)


def log_mask_probabilities(spec: ModelSpec, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities that a pixel is inside and that it is outside the mask, float32 [N, M, M] each.

    Args:
        spec: Sigmoid or softmax, class-agnostic or not.
        logits: [N, channels, M, M].
        labels: int64 [N], 1..K, the class whose mask is read.
    """
    logits = logits.float()
    index = torch.arange(logits.shape[0], device=logits.device)
    channel = torch.full_like(labels, num_mask_channels(spec) - 1) if spec.mask_class_agnostic else labels
    if spec.mask_activation == "sigmoid":
        class_logits = logits[index, channel]
        return F.logsigmoid(class_logits), F.logsigmoid(-class_logits)
    log_probabilities = F.log_softmax(logits, dim=1)
    return log_probabilities[index, channel], log_probabilities[:, 0]


def mask_probabilities(
    spec: ModelSpec, predictor: nn.Module, features: Tensor, labels: Tensor, *, at_once: int | None = None
) -> Tensor:
    """Probability that a pixel is inside the mask of the RoI's class, float32 [N, M, M].

    Where the last layer of the predictor computes each class independently, only the RoI's class is computed.

    Args:
        spec: Sigmoid or softmax, class-agnostic or not.
        predictor: The second module of `build_mask_head`.
        features: [N, C, P, P], the output of the first, the head.
        labels: int64 [N], 1..K, the class of each RoI.
        at_once: Masks that are computed together, where each class is computed independently; None: all.
    """
    if not isinstance(predictor, DeconvPredictor) or spec.mask_activation == "softmax" or spec.mask_class_agnostic:
        return log_mask_probabilities(spec, predictor(features), labels)[0].exp()
    if at_once is not None:
        pieces = zip(features.split(at_once), labels.split(at_once))
        return torch.cat([mask_probabilities(spec, predictor, *piece) for piece in pieces])
    layers: list[Any] = list(predictor)
    last = layers.pop()
    for layer in layers:
        features = layer(features)
    weights = last.weight[labels].flatten(1)[:, None]
    logits = torch.bmm(weights, features.flatten(2))[:, 0] + last.bias[labels, None]
    return logits.float().sigmoid().unflatten(1, features.shape[2:])


def mask_targets(masks: list[Tensor], boxes: list[Tensor], matches: list[Tensor], size: int) -> Tensor:
    """The true masks cropped to RoIs and resampled (RoIAlign): float32 [N, M, M] in 0..1, image after image.

    Args:
        masks: uint8 [G, H, W] for each image, resized as the image was.
        boxes: XYXY [n, 4] RoIs for each image, resized pixels.
        matches: int64 [n], index of the RoI's mask among the G of its image.
        size: M.
    """
    parts = []
    for image_masks, image_boxes, image_matches in zip(masks, boxes, matches):
        rois = torch.cat([image_matches[:, None].to(image_boxes), image_boxes], dim=1)
        parts.append(roi_align(image_masks[:, None].to(image_boxes), rois, (size, size), 1.0)[:, 0])
    return torch.cat(parts)
