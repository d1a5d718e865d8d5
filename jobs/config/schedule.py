"""Settings of `maskfleet schedule`: tasks with a cron expression each, and who is told when one fails."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, SecretStr, field_validator, model_validator

from jobs.config.base import ClusterSection, Section, field_of
from jobs.config.results import EvaluateConfig
from jobs.config.segment import SegmentConfig
from pipeline.dataset.source import AnnotationFormat, AnnotationSource
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Uri

NAME = r"^[a-z0-9][a-z0-9._-]*$"
NUM_TICKS_CHECKED = 400  # a year of nights
FIELDS = ("date", "time", "task", "model", "data")


def check_template(template: str) -> str:
    """Returns a URI template unchanged; its fields may be {date}, {time}, {task}, {model} and {data}.

    Raises:
        ValueError: other fields, or braces that do not close.
    """
    unknown = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None and name not in FIELDS]
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is not known; allowed are {', '.join(f'{{{name}}}' for name in FIELDS)}")
    return template


class ScheduleSection(Section):
    """The scheduler itself: its state, clock and cluster."""

    state: Uri = Field(
        min_length=1,
        description="Folder or s3:// prefix that keeps which ticks were run; several schedulers may share it.",
    )
    timezone: str = Field("UTC", description="Time zone of the cron expressions, such as Europe/Berlin.")
    late_s: float = Field(
        300,
        gt=0,
        description="Seconds after which a tick (a due time of a task) that no scheduler has seen counts as missed; "
        "see tasks.missed.",
    )
    poll_s: float = Field(
        20, gt=0, le=3600, description="Longest time between two looks at the clock and the state, in seconds."
    )
    submit_to: str | None = Field(
        None,
        description="Dashboard of a Ray cluster, such as http://head:8265, to which the steps are submitted as jobs; "
        "null runs them on this machine.",
    )

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        return check_zone(name)


class FailureSection(Section):
    """Notification of a task that fails, or whose gate fails."""

    command: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Program and its arguments, run without a shell; it gets the failure as JSON on its stdin.",
    )
    webhook: SecretStr | None = Field(None, description="http(s) URL to which the failure is posted as JSON.")
    timeout_s: float = Field(30, gt=0, description="Longest time for the command or the request, in seconds.")

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None and urlsplit(webhook.get_secret_value()).scheme not in ("http", "https"):
            raise ValueError("it must be an http:// or https:// URL")
        return webhook


class DataSetSection(Section):
    """A named set of images with ground truth."""

    name: str = Field(pattern=NAME, description="Name of the data set; {data} in templates.")
    images: Uri = Field(min_length=1, description="Images, as input.uri of `maskfleet segment`.")
    ground_truth: Uri = Field(min_length=1, description="Annotations, as ground_truth.uri of `maskfleet evaluate`.")
    format: AnnotationFormat = field_of(AnnotationSource, "format")
    part: Literal["train", "val", "test"] | None = field_of(AnnotationSource, "part")
    default_category: str = field_of(AnnotationSource, "default_category")
    drop_empty_categories: bool = field_of(AnnotationSource, "drop_empty_categories")

    @property
    def source(self) -> AnnotationSource:
        """The annotations, as `maskfleet evaluate` reads them."""
        return AnnotationSource(
            uri=self.ground_truth,
            format=self.format,
            part=self.part,
            default_category=self.default_category,
            drop_empty_categories=self.drop_empty_categories,
        )


class EvaluationSection(Section):
    """Segments and evaluates every model on every data set, unless the history has that evaluation already."""

    models: tuple[Uri, ...] = Field(
        min_length=1,
        description="Checkpoint folders, or training outputs, of which each tick takes the newest complete checkpoint.",
    )
    data: tuple[DataSetSection, ...] = Field(min_length=1, description="The data sets.")
    history: Uri = Field(
        min_length=1, description="Folder of all evaluations; an evaluation that is in it is not done again."
    )
    run_uri: Uri = Field(min_length=1, description="Template of the runs' output.uri; must hold {model} and {data}.")
    segment: dict[str, Any] = Field(
        default_factory=dict, description="Further sections of the configuration of `maskfleet segment`."
    )
    evaluate: dict[str, Any] = Field(
        default_factory=dict, description="Further sections of the configuration of `maskfleet evaluate`."
    )

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
    """A bulk run over what is new in a folder or bucket."""

    checkpoint: Uri = Field(min_length=1, description="Trained model, as model.checkpoint of `maskfleet segment`.")
    images: Uri = Field(min_length=1, description="Images, as input.uri of `maskfleet segment`.")
    output_uri: Uri = Field(
        min_length=1, description="Template of the runs' output.uri, another name for each tick; must hold {date}."
    )
    new_only: bool = Field(
        True, description="Leave out images that the task's earlier runs have segmented and that have not changed."
    )
    segment: dict[str, Any] = Field(
        default_factory=dict, description="Further sections of the configuration of `maskfleet segment`."
    )

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
    """A task with a cron expression: an evaluation or a bulk segmentation."""

    name: str = Field(pattern=NAME, description="Name of the task in the state and the log; {task} in templates.")
    cron: str = Field(description="Cron expression: minute, hour, day of the month, month, day of the week.")
    timezone: str | None = Field(
        None, description="Time zone of this task's cron expression; null takes schedule.timezone."
    )
    overlap: Literal["skip", "queue"] = Field(
        "skip", description="A tick while the task is still running: 'skip' leaves it out, 'queue' runs it afterwards."
    )
    missed: Literal["once", "all", "none"] = Field(
        "once", description="Ticks that passed while no scheduler was running: run the newest ('once'), all, or none."
    )
    timeout_s: float = Field(6 * 3600, gt=0, description="Longest time of one try, in seconds.")
    retries: int = Field(1, ge=0, le=100, description="Further tries of a tick that failed.")
    retry_wait_s: float = Field(60, ge=0, description="Wait before each further try, in seconds.")
    evaluate: EvaluationSection | None = Field(None, description="Evaluation to run; give either this or segment.")
    segment: SegmentationSection | None = Field(
        None, description="Bulk segmentation to run; give either this or evaluate."
    )

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
    def _zone_is_known(cls, name: str | None) -> str | None:
        return None if name is None else check_zone(name)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.evaluate is None) == (self.segment is None):
            raise ValueError(f"task {self.name}: give one of evaluate and segment")
        return self


class ScheduleConfig(Section):
    """All settings of `maskfleet schedule`."""

    schedule: ScheduleSection
    tasks: tuple[TaskSection, ...] = Field(min_length=1, description="The tasks.")
    on_failure: FailureSection = Field(default_factory=FailureSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks.name {duplicates[0]!r} is given twice; each task needs its own")
        return self

    @model_validator(mode="after")
    def _names_of_runs_differ(self) -> Self:
        for task in self.tasks:
            if task.segment is not None:
                _check_one_name_a_tick(task, task.segment.output_uri, self.zone_of(task))
        return self

    def zone_of(self, task: TaskSection) -> ZoneInfo:
        """The time zone of a task's cron expression."""
        return ZoneInfo(task.timezone or self.schedule.timezone)


def tick_fields(tick: datetime, zone: ZoneInfo) -> dict[str, str]:
    """The values of {date} and {time} in templates: of a tick in its zone, with the offset from UTC.

    The offset tells apart the two hours of one name that the end of summer time brings: 0230+0200 and 0230+0100.
    """
    local = tick.astimezone(zone)
    return {"date": f"{local:%Y-%m-%d}", "time": f"{local:%H%M%z}"}


def _check_one_name_a_tick(task: TaskSection, template: str, zone: ZoneInfo) -> None:
    """Refuses a template that gives two ticks of a year one name; the second would find the first one's run done."""
    used = {name for _, name, _, _ in string.Formatter().parse(template)} & {"date", "time"}
    previous: tuple[datetime, set[str]] | None = None
    for tick in itertools.islice(CronSim(task.cron, datetime(2026, 1, 1, tzinfo=zone)), NUM_TICKS_CHECKED):
        values = {value for field, value in tick_fields(tick, zone).items() if field in used}
        if previous is not None and previous[1] == values:
            raise ValueError(
                f"tasks.segment.output_uri: {template!r} gives the ticks {previous[0]:%Y-%m-%d %H:%M:%S} and "
                f"{tick:%Y-%m-%d %H:%M:%S} of {task.cron!r} (task {task.name}) one name, and one output is one run; "
                "allowed is a template with {date} and {time} and a cron expression of at most one tick a minute"
            )
        previous = (tick, values)


def segment_settings(sections: Mapping[str, Any], checkpoint: str, images: str, output: str) -> dict[str, Any]:
    """The settings of one `maskfleet segment`: a task's further sections with model, input and output filled in."""
    settings = {name: dict(values) if isinstance(values, Mapping) else values for name, values in sections.items()}
    settings["model"] = {**settings.get("model", {}), "checkpoint": checkpoint}
    settings["input"] = {**settings.get("input", {}), "uri": images}
    settings["output"] = {"uri": output}
    return settings


def check_zone(name: str) -> str:
    """Returns the name of a time zone unchanged.

    Raises:
        ValueError: no such time zone.
    """
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("no such time zone; allowed are names such as Europe/Berlin or UTC") from None
    return name
