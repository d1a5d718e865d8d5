"""Which settings are places is told by their types, in every command's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.commands import COMMANDS, read_settings
from jobs.config.load import ConfigError, to_plain
from jobs.config.places import map_places
from jobs.config.sweep import SweepConfig
from tests.paths import ROOT

LINES = {
    "train": [
        "data.train=t",
        "data.val=v",
        "data.image_root=r",
        "model.weights=w",
        "train.max_steps=1",
        "output.uri=o",
    ],
    "segment": [
        "model.checkpoint=m",
        "input.uri=i",
        "input.since_run=s",
        "input.extra_channels=x/{stem}",
        "output.uri=o",
        "segment.refine.model=/models/sam",
    ],
    "quantize": ["model.checkpoint=m", "data.calibration=c", "data.val=v", "data.val_image_root=i", "output.uri=o"],
    "evaluate": ["run.uri=r", "ground_truth.uri=g", "ground_truth.image_root=i", "history.uri=h", "output.uri=o"],
    "compare": ["run_a.uri=a", "run_b.uri=b", "ground_truth.uri=g"],
    "report": ["run.uri=r", "report.evaluation=e"],
    "check-data": ["data.uri=d", "data.image_root=i", "data.extra_channels=x/{stem}"],
    "convert": ["data.uri=d", "output.uri=o"],
}


def places_of(kind: Any, values: dict[str, Any]) -> dict[str, str]:
    """Every place among the settings, by its key."""
    found: dict[str, str] = {}
    assert map_places(kind, values, lambda key, value: found.setdefault(key, value)) == values
    return found


@pytest.mark.parametrize("command", LINES)
def test_every_place_of_a_command_is_found_and_nothing_else(command: str) -> None:
    words = LINES[command]
    places = {key: value for key, _, value in (word.partition("=") for word in words) if not key.endswith("max_steps")}
    assert places_of(COMMANDS[command].config, to_plain(read_settings(command, None, words))) == places


def test_names_and_patterns_of_the_photos_own_folder_are_no_places() -> None:
    words = [
        "model.checkpoint=torchvision:x",
        "input.uri=i",
        "input.extra_channels={folder}/{stem}.png",
        "output.uri=o",
        "segment.refine.model=facebook/sam-vit-base",
    ]
    values = to_plain(read_settings("segment", None, words))
    assert places_of(COMMANDS["segment"].config, values) == {"input.uri": "i", "output.uri": "o"}


def test_a_place_that_is_one_or_several_is_changed_once() -> None:
    for value in ("a", ["a", "b"]):
        plain = to_plain(read_settings("train", None, [f"data.train={value}", "output.uri=o", "train.max_steps=1"]))
        changed = map_places(COMMANDS["train"].config, plain, lambda key, place: f"{place}+")
        assert changed["data"]["train"] == ("a+" if value == "a" else ["a+", "b+"])


def test_a_schedule_names_the_places_of_its_tasks() -> None:
    values = to_plain(read_settings("schedule", ROOT / "configs/schedule/nightly.yaml", []))
    places = places_of(COMMANDS["schedule"].config, values)
    for key in ("schedule.state", "tasks.evaluate.history", "tasks.evaluate.data.ground_truth", "tasks.segment.images"):
        assert key in places
    assert not {key for key in places if key.endswith((".name", ".cron", ".format"))}


def test_a_sweeps_overrides_are_those_of_a_training() -> None:
    fixed = {"data.train": Path("a").name, "data.default_category": "coin", "train.batch_size": 2}
    values = {"sweep": {"fixed": fixed, "grid": {"data.val": ["a", "b"]}}, "output": {"uri": "o"}}
    seen: list[tuple[str, str]] = []

    def note(key: str, value: str) -> str:
        seen.append((key, value))
        return value.upper()

    changed = map_places(SweepConfig, values, note)
    assert seen == [("data.train", "a"), ("data.val", "a"), ("data.val", "b"), ("output.uri", "o")]
    assert changed["sweep"]["fixed"] == {**fixed, "data.train": "A"}
    assert changed["sweep"]["grid"] == {"data.val": ["A", "B"]}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("input.uri=http://host/photos", "input.uri: http://host/photos: no store for the scheme 'http'"),
        ("input.uri=https://host/a?sig=planted", "input.uri: https://host/a: no store for the scheme 'https'"),
        ("input.uri=s3://[x/", "input.uri: 's3://[x/' names no bucket"),
        ("output.uri=s3://", "output.uri: 's3://' names no bucket"),
        ("output.uri=file://data/x", "output.uri: 'file://data/x' names no path of this machine"),
        ('input.since_run="a\\0b"', "input.since_run: 'a\\x00b' has a NUL"),
        ("input.extra_channels=gs://b/{stem}.png", "input.extra_channels: gs://b/{stem}.png: no store"),
    ],
)
def test_a_place_that_no_store_can_have_is_named_by_its_key(word: str, sentence: str) -> None:
    words = ["model.checkpoint=m", "input.uri=i", "output.uri=o", word]
    with pytest.raises(ConfigError) as caught:
        read_settings("segment", None, words)
    assert str(caught.value).startswith(sentence)


def test_all_places_of_a_command_are_looked_at_before_it_starts() -> None:
    words = ["run.uri=r", "ground_truth.uri=g", "history.uri=ftp://x/y", "output.uri=S3:///k"]
    with pytest.raises(ConfigError) as caught:
        read_settings("evaluate", None, words)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["history.uri", "output.uri"]


def test_credentials_in_a_uri_are_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"output\.uri: a URI of s3:// with credentials in it") as caught:
        read_settings("evaluate", None, ["run.uri=r", "ground_truth.uri=g", "output.uri=s3://key:planted@lab/x"])
    assert "planted" not in str(caught.value)
