"""Prediction-only copies of a network: batch norms folded into convolutions, faster convolutions, less memory."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model.backbones.body import Body
from model.heads.roi_heads import BOX_ROI_SIZE
from model.heads.rpn import ProposalHead
from model.inference.winograd import LARGE_MAP_PX, conv3x3
from model.network import MaskRCNN
from model.vision import FeaturePyramidNetwork, FrozenBatchNorm2d, TwoMLPHead, resnet

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
# Modules that apply their children in the order of registration, so that a norm follows its convolution.
_APPLY_IN_ORDER = (nn.Sequential, Body, resnet.BasicBlock, resnet.Bottleneck)
# Below these numbers, Winograd's algorithm costs more than it saves (measured on two cores).
_MIN_CHANNELS = 256
_MIN_PX = 3_000
# Rows of a feature map that the RPN's head computes together.
_STRIP_ROWS = 64


def for_prediction(
    network: MaskRCNN, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> MaskRCNN:
    """A copy of a network for prediction only: equal outputs up to rounding, less work.

    Batch norms are folded into the convolutions before them (in float64); group norms stay. On a CPU, convolutions use
    Winograd's algorithm where it is faster. The network itself is not changed.

    Args:
        network: In training or evaluation mode.
        dtype: Of the feature maps. Scores and boxes are float32 always.
        device: Device of the copy.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _fold(network)
    network.compute_dtype = dtype
    network.to(device, dtype)
    if dtype != torch.float32 or torch.device(device).type == "cpu":
        network.to(memory_format=torch.channels_last)
    network.roi_heads.box_predictor.float()
    return network


def without_dense_layers(network: MaskRCNN) -> MaskRCNN:
    """A copy of a network for prediction without the layers of its dense parts, which an engine runs."""
    heads: Any = network.roi_heads
    dense = [network.backbone, network.rpn.head, heads.res5, heads.box_head, heads.box_predictor]
    dense += [heads.mask_head, heads.mask_predictor, heads.keypoint_head, heads.keypoint_predictor]
    placeholders = {id(module): nn.Identity() for module in dense if module is not None}
    return copy.deepcopy(network, placeholders).eval().requires_grad_(False)


def _fold(parent: nn.Module) -> None:
    children = list(parent.named_children())
    if isinstance(parent, _APPLY_IN_ORDER):
        for (_, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _BATCH_NORMS):
                _fold_pair(conv, norm)
                parent.set_submodule(norm_name, nn.Identity())
    for name, child in children:
        if type(child) is nn.Conv2d:
            parent.set_submodule(name, PredictionConv2d(child))
        elif isinstance(child, TwoMLPHead):
            parent.set_submodule(name, ChannelsLastMLP(child))
        else:
            _fold(child)
        if isinstance(child, FeaturePyramidNetwork):
            parent.set_submodule(name, LeanPyramid(child))
        elif isinstance(child, ProposalHead):
            parent.set_submodule(name, LeanProposalHead(child))


def _fold_pair(conv: nn.Conv2d, norm: Any) -> None:
    """Change the convolution in place so that it includes the norm."""
    scale, shift = (None if tensor is None else tensor.double() for tensor in (norm.weight, norm.bias))
    bias = None if conv.bias is None else conv.bias.double()
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    folded = fuse_conv_bn_weights(conv.weight.double(), bias, mean, variance, norm.eps, scale, shift)
    conv.weight, conv.bias = (nn.Parameter(tensor.to(conv.weight.dtype), requires_grad=False) for tensor in folded)


class PredictionConv2d(nn.Conv2d):
    """A convolution with faster algorithms for float32 on a CPU.

    A 1x1 kernel is a product of two matrices. A 3x3 kernel uses Winograd's algorithm (`model.inference.winograd`):
    values change by about 1e-5 of their spread. The choice depends on the size of the map and, for small maps, on their
    number. Each large map of a batch is computed by itself. Maps are channels last in memory.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        like: Any = conv  # torch declares kernel size, stride and padding as tuples of any length, but takes pairs
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,
            stride=like.stride,
            padding=like.padding,
            dilation=like.dilation,
            groups=like.groups,
            padding_mode=like.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        plain = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1)
        plain = plain and conv.padding_mode == "zeros"
        wide = min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
        self.has_winograd = plain and wide and conv.groups == 1
        self.overwrites = False  # whether the result may overwrite the memory of its input
        self.is_pointwise = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H', W']."""
        if maps.device.type != "cpu" or maps.dtype != torch.float32:
            return super().forward(maps)
        maps = maps.contiguous(memory_format=torch.channels_last)
        num_pixels = maps.shape[2] * maps.shape[3]
        if self.is_pointwise:
            return self._matrix_product(maps)
        if self.has_winograd and (num_pixels >= LARGE_MAP_PX or len(maps) * num_pixels >= _MIN_PX):
            return conv3x3(maps, self.weight, self.bias, in_place=self.overwrites)
        return super().forward(maps)

    def _matrix_product(self, maps: Tensor) -> Tensor:
        pixels = maps.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]].contiguous()
        products = pixels.new_empty(*pixels.shape[:3], self.out_channels)
        weight = self.weight.flatten(1).t()
        for image_pixels, out in zip(pixels.flatten(1, 2), products.flatten(1, 2)):
            if self.bias is None:
                torch.mm(image_pixels, weight, out=out)
            else:
                torch.addmm(self.bias, image_pixels, weight, out=out)
        return products.permute(0, 3, 1, 2)


class ChannelsLastMLP(nn.Module):
    """torchvision's box head of two layers for inputs that are channels last in memory, as RoIs on a CPU are."""

    def __init__(self, head: TwoMLPHead) -> None:
        super().__init__()
        self.fc6, self.fc7 = head.fc6, head.fc7
        weight, side = self.fc6.weight, BOX_ROI_SIZE
        permuted = weight.view(len(weight), -1, side, side).permute(0, 2, 3, 1).reshape(weight.shape)
        self.fc6.weight = nn.Parameter(permuted, requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, P, P] -> [N, D]."""
        return self.fc7(self.fc6(maps.permute(0, 2, 3, 1).flatten(1)).relu_()).relu_()


class LeanPyramid(nn.Module):
    """torchvision's feature pyramid that consumes its input maps, so that few maps are in memory at once."""

    def __init__(self, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.inner_blocks, self.layer_blocks = pyramid.inner_blocks, pyramid.layer_blocks
        self.extra_blocks = pyramid.extra_blocks
        for layer in self.layer_blocks[0].children():
            if isinstance(layer, PredictionConv2d):
                layer.overwrites = True

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Body maps -> pyramid maps, finest first each; the input dict is emptied on the way."""
        names, results, coarser = list(maps), list[Tensor](), None
        for inner_block, layer_block in zip(reversed(self.inner_blocks), reversed(self.layer_blocks)):
            inner = inner_block(maps.popitem()[1])
            if coarser is not None:
                _add_enlarged(inner, coarser)
            results.insert(0, layer_block(inner))
            coarser = inner
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, [], names)
        return OrderedDict(zip(names, results))


class LeanProposalHead(nn.Module):
    """The RPN's head, on a CPU computed in strips, so that few rows of its hidden maps are in memory at once."""

    def __init__(self, head: ProposalHead) -> None:
        super().__init__()
        self.conv, self.cls_logits, self.bbox_pred = head.conv, head.cls_logits, head.bbox_pred

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map [N, C, H, W], the logits [N, A, H, W] and the offsets [N, 4 A, H, W]."""
        outputs = [self._level(level_maps) for level_maps in maps]
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _level(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        height, reach = maps.shape[2], len(self.conv)  # each 3x3 kernel needs one more row on either side
        rows = _STRIP_ROWS if maps.device.type == "cpu" else height
        logits, deltas = list[Tensor](), list[Tensor]()
        for top in range(0, height, rows):
            first = max(top - reach, 0)
            hidden = self.conv(maps[:, :, first : top + rows + reach])[:, :, top - first : top - first + rows]
            logits.append(self.cls_logits(hidden))
            deltas.append(self.bbox_pred(hidden))
        return torch.cat(logits, dim=2), torch.cat(deltas, dim=2)


def _add_enlarged(maps: Tensor, coarser: Tensor) -> None:
    """Add `coarser`, enlarged by nearest neighbour, to `maps` in place; at exactly twice the size without a copy."""
    if maps.shape[2] == 2 * coarser.shape[2] and maps.shape[3] == 2 * coarser.shape[3]:
        maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(coarser[:, :, :, None, :, None])
    else:
        maps += F.interpolate(coarser, size=maps.shape[2:])
