"""Normalisation layers by name: frozen, plain and synchronised batch norm, group norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from model.vision import FrozenBatchNorm2d


def norm_layer(name: str, *, eps: float = 1e-5) -> Callable[[int], nn.Module] | None:
    """The function that makes a normalisation layer for a number of channels; None for "none".

    "frozen_batch" has no trainable parameters: it uses the statistics and scales of the loaded weights. "sync_batch"
    takes its statistics over all workers and is plain batch norm where there is only one. "group" has up to 32 groups.
    """
    makers: dict[str, Callable[[int], nn.Module] | None] = {
        "none": None,
        "frozen_batch": partial(FrozenBatchNorm2d, eps=eps),
        "batch": partial(nn.BatchNorm2d, eps=eps),
        "sync_batch": partial(nn.SyncBatchNorm, eps=eps),
        "group": partial(_group, eps=eps),
    }
    return makers[name]


def _group(channels: int, *, eps: float) -> nn.GroupNorm:
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps=eps)
