"""The table of commands: words stand for settings that exist, and reach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from jobs.commands import COMMANDS, read_settings
from jobs.config.base import fields_of
from jobs.config.load import ConfigError


def is_setting(config: type[BaseModel], key: str) -> bool:
    """Whether a dotted key names a setting of a configuration."""
    section: Any = config
    for name in key.split("."):
        known = fields_of(section)
        if name not in known:
            return False
        section = known[name].annotation
    return True


@pytest.mark.parametrize("name", COMMANDS)
def test_words_stand_for_settings_of_the_command(name: str) -> None:
    command = COMMANDS[name]
    keys = [*command.words, *filter(None, [command.list_word])]
    assert [key for key in keys if not is_setting(command.config, key)] == []
    assert not is_setting(command.config, "no.such")


def test_words_fill_their_settings_in_order() -> None:
    settings = read_settings("compare", None, ["s3://b/a", "s3://b/b=c", "compare.seed=3"])
    assert (settings.run_a.uri, settings.run_b.uri, settings.compare.seed) == ("s3://b/a", "s3://b/b=c", 3)
    settings = read_settings("compare", None, ["run_a.uri=first", "second"])
    assert (settings.run_a.uri, settings.run_b.uri, settings.ground_truth.uri) == ("first", "second", None)


def test_words_and_settings_may_stand_in_any_order() -> None:
    settings = read_settings("compare", None, ["compare.seed=3", "a", "storage.num_retries=1", "b"])
    assert (settings.run_a.uri, settings.run_b.uri) == ("a", "b")


def test_all_words_together_are_a_list_where_the_command_takes_one() -> None:
    words = ["b.jpg", "model.checkpoint=coco", "a: 1.jpg", "['x'].png"]
    assert read_settings("predict", None, words).input.photos == ("b.jpg", "a: 1.jpg", "['x'].png")


def test_words_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: {uri: of-the-file}\nreport: {seed: 7}\n")
    assert read_settings("report", tmp_path / "c.yaml", None).run.uri == "of-the-file"
    settings = read_settings("report", tmp_path / "c.yaml", ["typed"])
    assert (settings.run.uri, settings.report.seed) == ("typed", 7)


def test_a_word_too_many_is_refused() -> None:
    with pytest.raises(ConfigError, match="'b' is not understood"):
        read_settings("report", None, ["a", "b"])
