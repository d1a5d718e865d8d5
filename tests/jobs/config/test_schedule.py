"""The settings of a schedule: templates, cron expressions, time zones, and the sections of the commands it runs."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.schedule import ScheduleConfig, check_template, check_zone, segment_settings

SEGMENT = {"checkpoint": "m", "images": "i", "output_uri": "runs/{date}-{time}"}
EVALUATE = {
    "models": ["m"],
    "data": [{"name": "val", "images": "i", "ground_truth": "g"}],
    "history": "h",
    "run_uri": "runs/{date}-{model}-{data}",
}


def schedule_config(*tasks: dict[str, Any], **sections: Any) -> ScheduleConfig:
    """A schedule of tasks, each with what it lacks of a name, an hourly cron expression and something to segment."""
    filled = [{"name": "a", "cron": "0 * * * *"} | ({} if "evaluate" in t else {"segment": SEGMENT}) | t for t in tasks]
    return load_config(ScheduleConfig, None, [], base={"schedule": {"state": "s"}, "tasks": filled, **sections})


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"cron": "61 * * * *"}, "tasks.0.cron: '61 * * * *' is not allowed"),
        ({"cron": "0 3 * *"}, "tasks.0.cron: '0 3 * *' is not allowed: no cron expression"),
        ({"cron": "0 0 30 2 *"}, "no cron expression"),  # never comes
        ({"timezone": "Berlin"}, "tasks.0.timezone: 'Berlin' is not allowed: no such time zone"),
        ({"name": "a/b"}, "tasks.0.name"),
        ({"overlap": "both"}, "tasks.0.overlap"),
        ({"segment": None}, "task a: give one of evaluate and segment"),
        ({"segment": SEGMENT, "evaluate": EVALUATE}, "task a: give one of evaluate and segment"),
        ({"segment": SEGMENT | {"output_uri": "runs/all"}}, "it must hold {date}: one output is one run"),
        ({"segment": SEGMENT | {"segment": {"segment": {"batch_size": 0}}}}, "batch_size"),
        ({"evaluate": EVALUATE | {"run_uri": "runs/{date}-{model}"}}, "it must hold {model} and {data}"),
        ({"evaluate": EVALUATE | {"run_uri": "runs/{user}"}}, "{user} is not known; allowed are {date}"),
        ({"evaluate": EVALUATE | {"segment": {"segment": {"batch_size": 0}}}}, "batch_size"),
        ({"evaluate": EVALUATE | {"evaluate": {"gate": {"min_app": 1}}}}, "min_app"),
    ],
)
def test_wrong_tasks_are_named(task: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule_config(task)
    assert sentence in str(caught.value)


def test_a_data_set_says_how_its_annotations_are_read_as_evaluate_does() -> None:
    how = {"format": "yolo", "part": "val", "default_category": "cell", "drop_empty_categories": True}
    data = [{"name": "val", "images": "i", "ground_truth": "data.yaml", **how}]
    (task,) = schedule_config({"evaluate": EVALUATE | {"data": data}}).tasks
    assert task.evaluate is not None
    assert vars(task.evaluate.data[0].source) == {"uri": "data.yaml", "image_root": None, **how}


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.name 'b' is given twice"):
        schedule_config({"name": "b"}, {"name": "a"}, {"name": "b"})


def test_a_webhook_is_http_and_never_shown() -> None:
    config = schedule_config({}, on_failure={"webhook": "https://chat/planted"})
    assert "planted" not in repr(config)
    with pytest.raises(ConfigError, match="must be an http:// or https:// URL") as caught:
        schedule_config({}, on_failure={"webhook": "file:///planted"})
    assert "planted" not in str(caught.value)


def test_a_task_may_have_a_time_zone_of_its_own() -> None:
    tasks = [{"name": "a"}, {"name": "b", "timezone": "Asia/Tokyo"}]
    config = schedule_config(*tasks, schedule={"state": "s", "timezone": "Europe/Berlin"})
    assert [config.zone_of(task) for task in config.tasks] == [ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")]
    assert check_zone("UTC") == "UTC"


@pytest.mark.parametrize("template", ["{user}", "{0}", "{", "{date"])
def test_templates_with_other_fields_or_open_braces_are_refused(template: str) -> None:
    assert check_template("a/{date}{time}/{task}-{model}-{data}") == "a/{date}{time}/{task}-{model}-{data}"
    with pytest.raises(ValueError):
        check_template(template)


def test_the_settings_of_a_segmentation_fill_in_what_the_task_says() -> None:
    sections = {"input": {"pattern": "*.jpg", "uri": "other"}, "segment": {"batch_size": 8}}
    settings = segment_settings(sections, "m", "i", "o")
    assert settings == {
        "model": {"checkpoint": "m"},
        "input": {"pattern": "*.jpg", "uri": "i"},
        "segment": {"batch_size": 8},
        "output": {"uri": "o"},
    }
    assert sections["input"] == {"pattern": "*.jpg", "uri": "other"}


@pytest.mark.parametrize(
    ("cron", "template", "zone", "is_allowed"),
    [
        ("0 3 * * *", "runs/{date}", "UTC", True),
        ("30 2 * * *", "runs/{date}", "Europe/Berlin", True),  # comes twice on one day of the year, and runs once
        ("0 3,15 * * *", "runs/{date}", "UTC", False),
        ("0 3,15 * * *", "runs/{date}-{time}", "UTC", True),
        ("0 * * * *", "runs/{date}", "UTC", False),
        ("0 * * * *", "runs/{date}/{time}", "Europe/Berlin", True),
        ("* * * * *", "runs/{date}/{time}", "UTC", True),
        ("*/30 * * * * *", "runs/{date}/{time}", "UTC", False),  # a sixth field: seconds
        ("0 3,15 29 2 *", "runs/{date}", "UTC", False),  # every four years
    ],
)
def test_a_template_gives_each_tick_another_name(cron: str, template: str, zone: str, is_allowed: bool) -> None:
    task = {"cron": cron, "timezone": zone, "segment": SEGMENT | {"output_uri": template}}
    if is_allowed:
        assert schedule_config(task).tasks[0].cron == cron
    else:
        with pytest.raises(ConfigError, match=r"one name, and one output is one run; .*\{time\}"):
            schedule_config(task)
