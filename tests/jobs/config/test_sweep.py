"""The settings of a sweep: dotted keys from the command line, and sections that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.sweep import SweepConfig


def sweep_config(*words: str, **sweep: Any) -> SweepConfig:
    return load_config(SweepConfig, None, words, base={"sweep": sweep, "output": {"uri": "out"}})


def test_words_of_the_command_line_reach_fixed_and_grid() -> None:
    words = ["sweep.fixed.data.train=x", "sweep.fixed.data.val=y", "sweep.grid.train.batch_size=[1, 2]"]
    config = sweep_config(*words)
    assert config.sweep.fixed == {"data.train": "x", "data.val": "y"}
    assert config.sweep.grid == {"train.batch_size": [1, 2]}


def test_nested_and_dotted_keys_of_a_case_are_the_same() -> None:
    nested = sweep_config(cases={"a": {"train": {"momentum": 0.5}}, "b": {}})
    assert nested == sweep_config(cases={"a": {"train.momentum": 0.5}, "b": {}})


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({"grid": {"train.batch_size": []}}, "train.batch_size has no values; allowed is a list of at least one"),
        ({"grid": {"train.seed": [1]}}, "train.seed is not allowed in fixed, cases or grid"),
        ({"fixed": {"output.uri": "x"}}, "output.uri is not allowed in fixed, cases or grid"),
        (
            {"cases": {"a": {"train.momentum": 0.1}}, "grid": {"train.momentum": [0.2]}},
            "train.momentum is in case 'a' and in the grid",
        ),
        ({"seeds": []}, "sweep.seeds"),
    ],
)
def test_contradictions_are_refused(sweep: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_config(**sweep)
    assert sentence in str(caught.value)


def test_an_effect_between_cases_that_are_not_there_is_refused() -> None:
    effect = {"of": "a", "over": "c", "published": 1.0, "source": "x"}
    with pytest.raises(ConfigError, match="effects: 'c' is no case; allowed are a, b"):
        sweep_config(cases={"a": {}, "b": {}}, effects=[effect])
    with pytest.raises(ConfigError, match="effects: 'a' is no case; allowed are none without cases"):
        sweep_config(effects=[effect])
