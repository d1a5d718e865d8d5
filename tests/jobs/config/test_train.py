"""The settings of a training: presets, when it ends, and which keys are no part of what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config.base import flatten
from jobs.config.load import ConfigError, load_config, to_plain
from jobs.config.train import LATER, NOT_IDENTITY, TrainConfig, identity_of
from model.presets import preset

EARLIER = Path(__file__).parent / "settings_of_an_earlier_training.yaml"


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
        (
            ["train.early_stop_patience=2"],
            "train.early_stop_patience is set, but data.val is null",
        ),
        (["train.validate_every_steps=2"], "train.validate_every_steps is set, but data.val is null"),
        (["train.validate_every_epochs=0.5"], "train.validate_every_epochs is set, but data.val is null"),
        (
            ["train.early_stop_patience=2", "data.val=v", "train.validate_every_steps=0"],
            "train.early_stop_patience needs validations, but train.validate_every_steps is 0: never",
        ),
        (["train.milestones=[20, 10]"], "train.milestones is (20, 10); allowed are rising steps from 1"),
        (["train.milestones=[10, 10]"], "train.milestones is (10, 10); allowed are rising steps from 1"),
        (["train.milestones=[0, 10]"], "train.milestones is (0, 10); allowed are rising steps from 1"),
        (["model.weights=coco", "model.checkpoint=x"], "both name a start; give at most one of them"),
        (["data.augment.hue=0.6"], "data.augment.hue: 0.6 is not allowed"),
        (["data.classes=[]"], "data.classes"),
        (["data.class_weights.cat=0"], "data.class_weights.cat: 0 is not allowed"),
        (["data.repeat_threshold=0"], "data.repeat_threshold: 0 is not allowed"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(*words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("word", ["train.validate_every_steps=5", "train.validate_every_epochs=0.5", "train.seed=1"])
def test_a_training_with_a_validation_set_validates_unless_told_not_to(word: str) -> None:
    assert train_config(word, "data.val=v", "train.early_stop_patience=2").validates
    assert not train_config("data.val=v", "train.validate_every_steps=0").validates
    assert not train_config().validates


def test_keys_that_are_no_part_of_what_is_trained_exist() -> None:
    """A misspelt key in NOT_IDENTITY would refuse a resumed training for a setting that may differ."""
    assert NOT_IDENTITY <= flatten(to_plain(train_config())).keys()


def test_a_setting_added_since_does_not_make_an_earlier_training_another_one() -> None:
    """A new setting belongs in LATER: the identity, of which a trial's folder is named, stays as it was then."""
    before = yaml.safe_load(EARLIER.read_text())
    config = TrainConfig.model_validate(before)
    sections = ("storage", "cluster", "output")
    kept = {key: value for key, value in flatten(before).items() if key.split(".")[0] not in sections}
    assert identity_of(config) == {key: value for key, value in kept.items() if key not in NOT_IDENTITY}
    now = flatten(to_plain(config))
    assert LATER == {key: now[key] for key in LATER} and not LATER.keys() & kept.keys()


def test_a_younger_setting_that_is_used_is_part_of_what_is_trained() -> None:
    config = train_config("data.class_weights.cat=2", "data.repeat_threshold=0.1", "data.drop_empty_categories=true")
    identity = identity_of(config)
    assert identity["data.class_weights.cat"] == 2 and identity["data.repeat_threshold"] == 0.1
    assert identity["data.drop_empty_categories"] is True
