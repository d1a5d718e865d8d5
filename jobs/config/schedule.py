"""The settings of `maskfleet schedule`: tasks with a cron expression each, and what happens when one fails."""

from __future__ import annotations

import string
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, SecretStr, field_validator, model_validator

from jobs.config.base import ClusterSection, Section, StorageSection
from jobs.config.results import AnnotationFormat, EvaluateConfig
from jobs.config.segment import SegmentConfig

NAME = r"^[a-z0-9][a-z0-9._-]*$"
FIELDS = ("date", "time", "task", "model", "data")


def check_template(template: str) -> str:
    """A URI with {date}, {time}, {task}, {model}, {data} in it, as given.

    Raises:
        ValueError: other fields, or braces that do not close.
    """
    unknown = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None and name not in FIELDS]
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is not known; allowed are {', '.join(f'{{{name}}}' for name in FIELDS)}")
    return template


class ScheduleSection(Section):
    """The scheduler itself."""

    state: str = Field(
        min_length=1, description="Folder or s3:// prefix that keeps what was done; schedulers may share it."
    )
    timezone: str = Field("UTC", description="Time zone of the cron expressions, such as Europe/Berlin.")
    late_s: float = Field(300, gt=0, description="A tick that is seen later than this was missed; see tasks.missed.")
    poll_s: float = Field(20, gt=0, le=3600, description="Longest time between two looks at the clock and the state.")
    submit_to: str | None = Field(
        None, description="Dashboard of a cluster, as http://head:8265: the steps are jobs there; null runs them here."
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_zone(name)


class FailureSection(Section):
    """What is told to whom when a task fails or its gate does."""

    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="Program and arguments, run without a shell; the failure is JSON on its stdin."
    )
    webhook: SecretStr | None = Field(None, description="An http(s) URL that the failure is posted to as JSON.")
    timeout_s: float = Field(30, gt=0, description="Longest time for either.")

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None and urlsplit(webhook.get_secret_value()).scheme not in ("http", "https"):
            raise ValueError("it must be an http:// or https:// URL")
        return webhook


class DataSetSection(Section):
    """Photos with ground truth."""

    name: str = Field(pattern=NAME, description="What {data} stands for.")
    images: str = Field(min_length=1, description="Photos, as input.uri of `maskfleet segment`.")
    ground_truth: str = Field(min_length=1, description="Their truth, as ground_truth.uri of `maskfleet evaluate`.")
    format: AnnotationFormat = Field("auto", description="Form of the annotations.")


class EvaluationSection(Section):
    """Every model on every data set that is not in the history yet."""

    models: tuple[str, ...] = Field(
        min_length=1, description="Checkpoints, or training outputs (then the newest complete checkpoint at the tick)."
    )
    data: tuple[DataSetSection, ...] = Field(min_length=1, description="The data sets.")
    history: str = Field(min_length=1, description="Folder that keeps every evaluation; what is in it is not due.")
    run_uri: str = Field(min_length=1, description="Template of the runs' output.uri.")
    segment: dict[str, Any] = Field(default_factory=dict, description="Further sections of `maskfleet segment`.")
    evaluate: dict[str, Any] = Field(default_factory=dict, description="Further sections of `maskfleet evaluate`.")

    @field_validator("run_uri")
    @classmethod
    def _template(cls, template: str) -> str:
        names = {name for _, name, _, _ in string.Formatter().parse(check_template(template))}
        if not {"model", "data"} <= names:
            raise ValueError("it must hold {model} and {data}: one output is one run")
        return template

    @model_validator(mode="after")
    def _sections(self) -> Self:
        SegmentConfig.model_validate(segment_settings(self.segment, "m", "i", "o"))
        EvaluateConfig.model_validate(self.evaluate | {"run": {"uri": "r"}, "ground_truth": {"uri": "g"}})
        return self


class SegmentationSection(Section):
    """A bulk run of what is new in a folder or bucket."""

    checkpoint: str = Field(min_length=1, description="As model.checkpoint of `maskfleet segment`.")
    images: str = Field(min_length=1, description="As input.uri of `maskfleet segment`.")
    output_uri: str = Field(min_length=1, description="Template of the runs' output.uri; must hold {date}.")
    new_only: bool = Field(True, description="Leave out what the task's earlier runs have segmented and is unchanged.")
    segment: dict[str, Any] = Field(default_factory=dict, description="Further sections of `maskfleet segment`.")

    @field_validator("output_uri")
    @classmethod
    def _template(cls, template: str) -> str:
        if "date" not in {name for _, name, _, _ in string.Formatter().parse(check_template(template))}:
            raise ValueError("it must hold {date}: one output is one run")
        return template

    @model_validator(mode="after")
    def _sections(self) -> Self:
        SegmentConfig.model_validate(segment_settings(self.segment, "m", "i", "o"))
        return self


class TaskSection(Section):
    """Something that is due at times."""

    name: str = Field(pattern=NAME, description="Names the task in the state, the log and {task}.")
    cron: str = Field(description="Minute, hour, day, month, weekday, as cron reads them.")
    timezone: str | None = Field(None, description="Of this task; null takes schedule.timezone.")
    overlap: Literal["skip", "queue"] = Field(
        "skip", description="A tick while the task still runs: leave it out, or run it afterwards."
    )
    missed: Literal["once", "all", "none"] = Field(
        "once", description="Ticks while no scheduler was there: run the newest, run all, run none."
    )
    timeout_s: float = Field(6 * 3600, gt=0, description="Longest time of one try.")
    retries: int = Field(1, ge=0, le=100, description="Further tries of a tick that failed.")
    retry_wait_s: float = Field(60, ge=0, description="Wait before a further try.")
    evaluate: EvaluationSection | None = Field(None, description="What is evaluated; this or segment.")
    segment: SegmentationSection | None = Field(None, description="What is segmented; this or evaluate.")

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, expression: str) -> str:
        try:
            next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"no cron expression ({error}); allowed are five fields such as '0 3 * * *'") from None
        return expression

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return None if name is None else check_zone(name)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.evaluate is None) == (self.segment is None):
            raise ValueError(f"task {self.name}: give one of evaluate and segment")
        return self


class ScheduleConfig(Section):
    """`maskfleet schedule`."""

    schedule: ScheduleSection
    tasks: tuple[TaskSection, ...] = Field(min_length=1, description="The tasks.")
    on_failure: FailureSection = Field(default_factory=FailureSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSection = Field(default_factory=StorageSection)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks.name {twice[0]!r} is given twice; each task needs its own")
        return self

    def zone_of(self, task: TaskSection) -> ZoneInfo:
        """The time zone of a task's cron expression."""
        return ZoneInfo(task.timezone or self.schedule.timezone)


def segment_settings(sections: Mapping[str, Any], checkpoint: str, images: str, output: str) -> dict[str, Any]:
    """The settings of one `maskfleet segment` over a task's sections."""
    settings = {name: dict(values) if isinstance(values, Mapping) else values for name, values in sections.items()}
    settings["model"] = {**settings.get("model", {}), "checkpoint": checkpoint}
    settings["input"] = {**settings.get("input", {}), "uri": images}
    settings["output"] = {"uri": output}
    return settings


def check_zone(name: str) -> str:
    """The name of a time zone, as given. Raises ValueError for one that is not known."""
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("no such time zone; allowed are names such as Europe/Berlin or UTC") from None
    return name
