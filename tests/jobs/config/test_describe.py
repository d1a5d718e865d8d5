"""Tables of settings: keys, types, defaults and ranges are those that a configuration is held to."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.commands import COMMANDS, CONFIGURED
from jobs.config.base import flatten
from jobs.config.describe import settings_of, to_text, within
from jobs.config.load import ConfigError, load_config, to_plain
from jobs.terminal import Exit

NEEDED = {
    "segment": ["model.checkpoint=m", "input.uri=i", "output.uri=o"],
    "train": ["data.train=t.json", "output.uri=o", "train.max_steps=5"],
    "predict": ["model.checkpoint=m", "input.photos=[p]"],
}


@pytest.mark.parametrize("command", NEEDED)
def test_keys_and_defaults_are_those_of_the_configuration(command: str) -> None:
    config = load_config(COMMANDS[command].config, None, NEEDED[command])
    values = flatten(to_plain(config))
    settings = {each.key: each for each in settings_of(COMMANDS[command].config)}
    given = {word.split("=")[0] for word in NEEDED[command]}
    assert {key for key, each in settings.items() if not each.default and key.count(".") == 1} <= given
    for key, value in values.items():
        if key in settings and key not in given:
            assert yaml.safe_load(settings[key].default) == value, key
    missing = set(values) - set(settings)
    sections = {key for key in missing if any(name.startswith(f"{key}.") for name in settings)}
    assert missing - sections == set(), "a section that is null stands for its keys"


@pytest.mark.parametrize(
    ("key", "type_words", "wrong"),
    [
        ("segment.batch_size", "whole number, 1 to 1,024", "1025"),
        ("segment.mode", "exact or fast or int8", "quick"),
        ("segment.slice.merge_iou", "number, above 0 and at most 1", "0"),
        ("storage.num_retries", "whole number, 0 to 100", "-1"),
        ("decode.max_pixels", "whole number, at least 1", "0"),
    ],
)
def test_the_range_is_the_one_that_is_enforced(key: str, type_words: str, wrong: str) -> None:
    (found,) = [each for each in settings_of(COMMANDS["segment"].config) if each.key == key]
    assert found.type == type_words
    extra = ["segment.slice.size=64"] if "slice" in key else []
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        load_config(COMMANDS["segment"].config, None, [*NEEDED["segment"], *extra, f"{key}={wrong}"])


def test_a_list_of_sections_is_shown_with_its_keys() -> None:
    keys = [each.key for each in within(settings_of(COMMANDS["schedule"].config), "tasks")]
    assert "tasks[].cron" in keys and "tasks[].evaluate.data[].images" in keys
    assert all(key.startswith("tasks[].") for key in keys)


def test_a_section_of_the_network_is_shown_with_its_meaning() -> None:
    text = to_text(within(settings_of(COMMANDS["train"].config), "model.spec"))
    assert 'model.spec.neck = "fpn"  ("fpn" or "c4" or "c5" or "dc5")\n    The feature maps' in text


def test_the_command_prints_a_section_and_names_what_there_is() -> None:
    result = CliRunner().invoke(app, ["settings", "segment", "corpus"])
    assert result.exit_code == Exit.DONE and result.stdout.startswith("corpus.shard_size = null  (whole number or null")
    result = CliRunner().invoke(app, ["settings", "segment", "corpse"])
    assert result.exit_code == Exit.BAD_INPUT and "did you mean corpus? allowed are model, input" in result.stderr
    result = CliRunner().invoke(app, ["settings", "verfy"])
    assert (
        result.exit_code == Exit.BAD_INPUT
        and ", ".join(CONFIGURED) in result.stderr
        and "did you mean verify?" in result.stderr
    )
    for words in (["train", "--help"], ["segment", "--help"]):
        assert f"maskfleet settings {words[0]}" in CliRunner().invoke(app, words).stdout
