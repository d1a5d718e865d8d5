"""Normalisation layers by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """The function that makes a normalisation layer for a number of channels.

    "frozen_batch" has no trainable parameters (statistics and scales of the loaded weights); "sync_batch" takes its
    statistics over all workers and is plain batch norm where there is one; "group" has up to 32 groups.
    """
    return {"frozen_batch": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "sync_batch": nn.SyncBatchNorm, "group": _group}[
        name
    ]


def _group(channels: int) -> nn.GroupNorm:
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)
