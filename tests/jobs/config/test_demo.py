"""The settings of the demo: it needs none, and sets too small to train on are refused."""

from __future__ import annotations

import pytest

from jobs.config.demo import DemoConfig
from jobs.config.load import ConfigError, load_config


def test_the_demo_needs_no_settings() -> None:
    config = load_config(DemoConfig, None)
    assert config.output.uri == "demo" and config.demo.num_unlabelled > 0


@pytest.mark.parametrize("word", ["demo.num_train=7", "demo.num_val=3", "demo.num_unlabelled=0", "demo.max_steps=0"])
def test_sets_and_trainings_that_are_too_small_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed: input should be greater than or equal to"):
        load_config(DemoConfig, None, [word])
