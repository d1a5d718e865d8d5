"""The settings of a training: presets, when it ends, and which keys are no part of what is trained."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config.base import flatten
from jobs.config.load import ConfigError, load_config, to_plain
from jobs.config.train import NOT_IDENTITY, TrainConfig
from model.presets import preset


def train_config(*words: str, **model: Any) -> TrainConfig:
    base = {"model": model, "data": {"train": "x"}, "train": {"max_steps": 1}, "output": {"uri": "y"}}
    return load_config(TrainConfig, None, words, base=base)


def test_a_preset_is_the_spec_of_a_published_network() -> None:
    config = train_config(preset="mask_rcnn_R_50_FPN_3x", spec={"image_min_size": 640})
    assert config.model.spec == preset("mask_rcnn_R_50_FPN_3x", num_classes=0, image_min_size=640)
    assert TrainConfig.model_validate(to_plain(config)) == config
    assert train_config(preset="maskrcnn_resnet50_fpn_v2").model.spec == preset(
        "maskrcnn_resnet50_fpn_v2", num_classes=0
    )
    with pytest.raises(ValueError, match=r"no published network 'mask_rcnn_R_51'; allowed are maskrcnn_resnet50_fpn,"):
        train_config(preset="mask_rcnn_R_51")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.max_steps=null"], "train.max_steps and train.num_epochs are both null"),
        (
            ["train.validate_every_steps=1", "train.validate_every_epochs=1"],
            "train.validate_every_steps and train.validate_every_epochs are both set; give one",
        ),
        (["train.early_stop_patience=2"], "train.early_stop_patience needs train.validate_every_steps"),
        (["train.milestones=[20, 10]"], "train.milestones is (20, 10); allowed are rising steps from 1"),
        (["train.milestones=[10, 10]"], "train.milestones is (10, 10); allowed are rising steps from 1"),
        (["train.milestones=[0, 10]"], "train.milestones is (0, 10); allowed are rising steps from 1"),
        (["model.weights=coco", "model.checkpoint=x"], "both name a start; give at most one of them"),
        (["data.augment.hue=0.6"], "data.augment.hue: 0.6 is not allowed"),
        (["data.classes=[]"], "data.classes"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(*words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("word", ["train.validate_every_steps=5", "train.validate_every_epochs=0.5"])
def test_either_key_turns_validation_on(word: str) -> None:
    assert train_config(word, "train.early_stop_patience=2").train.validates
    assert not train_config().train.validates


def test_keys_that_are_no_part_of_what_is_trained_exist() -> None:
    """A misspelt key in NOT_IDENTITY would refuse a resumed training for a setting that may differ."""
    assert NOT_IDENTITY <= flatten(to_plain(train_config())).keys()
