"""Normalisation layers by name."""

from typing import Any

import pytest
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.norms import norm_layer

LAYER_TYPES = {
    "frozen_batch": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync_batch": nn.SyncBatchNorm,
    "group": nn.GroupNorm,
}


def make(name: str, channels: int, **options: float) -> Any:
    maker = norm_layer(name, **options)
    assert maker is not None
    return maker(channels)


@pytest.mark.parametrize("name", LAYER_TYPES)
def test_each_name_makes_its_layer_with_the_given_epsilon(name):
    layer = make(name, 48, eps=0.5)
    assert type(layer) is LAYER_TYPES[name] and layer.eps == 0.5


def test_none_makes_no_layer():
    assert norm_layer("none") is None


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (20, 4), (7, 1)])
def test_group_norm_has_the_most_groups_up_to_32_that_divide_the_channels(channels, groups):
    assert make("group", channels).num_groups == groups
