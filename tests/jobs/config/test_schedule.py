"""Wrong settings of a schedule are refused, each by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.config.load import ConfigError
from tests.jobs.schedule.simulation import make_config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cron": "61 * * * *"}, "tasks.0.cron: '61 * * * *' is not allowed"),
        ({"timezone": "Berlin"}, "tasks.0.timezone: 'Berlin' is not allowed: no such time zone"),
        ({"segment": None, "evaluate": None}, "give one of evaluate and segment"),
        ({"overlap": "both"}, "tasks.0.overlap"),
        ({"name": "a/b"}, "tasks.0.name"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(tmp_path, tmp_path, tmp_path, **change)
    assert sentence in str(caught.value)


def test_wrong_templates_and_sections_are_named(tmp_path: Path) -> None:
    good = json.loads(make_config(tmp_path, tmp_path, tmp_path).tasks[0].evaluate.model_dump_json())
    for change, sentence in (
        ({"run_uri": "runs/{user}"}, "{user} is not known; allowed are {date}"),
        ({"run_uri": "runs/{date}"}, "it must hold {model} and {data}"),
        ({"segment": {"segment": {"batch_size": 0}}}, "batch_size"),
        ({"evaluate": {"gate": {"min_app": 1}}}, "min_app"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_config(tmp_path, tmp_path, tmp_path, evaluate=good | change)
        assert sentence in str(caught.value), caught.value
