"""MLflow's client: finds or creates the run of a record, and sends what it lacks of settings, metrics and files.

One record is one MLflow run: it is found by the record's id, which the run has as a tag, however often the work behind
it is started. MLflow itself is asked what it has, so that nothing is sent twice, and what was lost is sent again.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from jobs.config.base import flatten
from jobs.config.load import ConfigError, to_saved
from jobs.config.tracking import TrackingSection
from jobs.home import VERSION
from pipeline.manifest import to_json
from pipeline.storage.base import Storage
from pipeline.storage.uri import is_local, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ID_FILE = "tracking.json"
ID_TAG = "maskfleet.id"
CHANGED_TAG = "maskfleet.changed_settings"
_TRASH = ".trash"  # a folder that each file store has
_PARENT_TAG = "mlflow.parentRunId"
# What MLflow takes of one request, and of one value.
_MAX_METRICS, _MAX_PARAMETERS, _MAX_PARAMETER = 1000, 100, 6000
_MAX_REASON = 300
_ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # no usage statistics
    "MLFLOW_ALLOW_FILE_STORE": "true",  # which it asks for since its file store is in maintenance
    # Lines of its own among ours.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# By itself MLflow waits for 120 s and tries seven times; a failed request is made again with the next values instead.
_UNLESS_SET = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@dataclass(frozen=True)
class RunRecord:
    """What one MLflow run is made of.

    Attributes:
        id: Text that no other record has; see `record_id`.
        name: Name of the run.
        settings: The settings by dotted key, without secrets; the run's parameters.
        tags: Tags by name.
        read_rows: Gives all metrics so far: values by name, and the whole number `step`.
        write_files: Writes the files so far into an empty folder.
        parent: The record that this one belongs to, as a sweep's trial does.
    """

    id: str
    name: str
    settings: Mapping[str, object]
    tags: Mapping[str, str]
    read_rows: Callable[[], Sequence[Mapping[str, float]]]
    write_files: Callable[[Path], None]
    parent: RunRecord | None = None


def record_id(storage: Storage) -> str:
    """The id of the record of an output, kept in its tracking.json, which is written where there is none.

    Raises:
        ValueError: tracking.json holds something else.
    """
    storage.put_if_absent(ID_FILE, to_json({"id": uuid.uuid4().hex}))
    try:
        found = json.loads(storage.read_bytes(ID_FILE))["id"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{32}", found):
        raise ValueError(f"{storage.uri_of(ID_FILE)} holds no id of a record; remove it to begin a new MLflow run")
    return found


def to_parameters(config: BaseModel) -> dict[str, object]:
    """The settings by dotted key, without those of storage and tracking."""
    return {key: value for key, value in flatten(to_saved(config)).items() if not key.startswith("tracking.")}


def to_tags(command: str, **places: str) -> dict[str, str]:
    """The tags that all records have: version, command, user, and where model, data and output are."""
    tags = {"mlflow.source.name": f"maskfleet {command}", "maskfleet.version": VERSION}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        pass
    return tags | {f"maskfleet.{name}": place for name, place in places.items() if place}


@dataclass
class _Opened:
    """A record's run: its id, and (metric, step) of each value that it has."""

    run_id: str
    sent: set[tuple[str, int]] = field(default_factory=set)


class MlflowStore:
    """An MLflow experiment. Every method may raise what MLflow raises, after the time that one request may take.

    Args:
        section: Names the store, which `uri` must do, and the experiment. Nothing is asked or written yet.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, section: TrackingSection) -> None:
        assert section.uri is not None
        self.uri, self.experiment = section.uri, section.experiment
        self.folder = local_path(self.uri) if is_local(self.uri) else None
        _load_mlflow()
        self._experiment_id = ""
        self._opened: dict[str, _Opened] = {}

    @cached_property
    def _client(self) -> MlflowClient:
        """The client, which makes the folder where it is made."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri if self.folder is None else self.folder.as_uri())

    def check(self) -> None:
        """Looks whether the store answers and takes the experiment; writes nothing.

        Raises:
            ConfigError: A folder that cannot be written or holds something else, or an experiment that was deleted.
        """
        if self.folder is not None:
            _check_folder(self.folder)
            if not (self.folder / _TRASH).exists():
                return  # there is no store yet, and to ask for it would make one
        self._find_experiment()

    def open(self, record: RunRecord, *, is_running: bool = True) -> str:
        """Finds or creates the run, with its settings and tags, and returns its id.

        Args:
            is_running: Whether the run shall be shown as running, though it may have ended before.
        """
        if (opened := self._opened.get(record.id)) is not None:
            return opened.run_id
        tags = {ID_TAG: record.id, **record.tags}
        if record.parent is not None:
            tags[_PARENT_TAG] = self.open(record.parent)
        run = self._find(record)
        if run is None:
            run = self._client.create_run(self._find_or_make_experiment(), tags=tags, run_name=record.name)
        elif is_running and run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._send_settings(run, record.settings, tags)
        self._opened[record.id] = _Opened(run.info.run_id, self._values_of(run))
        return run.info.run_id

    def send_rows(self, record: RunRecord) -> None:
        """Sends the metrics that the run lacks; of each name and step it has the first value that was sent."""
        from mlflow.entities import Metric

        opened = self._opened[record.id]
        values = {
            (name, int(row["step"])): float(value)
            for row in record.read_rows()
            for name, value in row.items()
            if name != "step" and math.isfinite(value)
        }
        now_ms = int(time.time() * 1000)
        missing = [(key, value) for key, value in values.items() if key not in opened.sent]
        for part in _parts(missing, _MAX_METRICS):
            self._client.log_batch(
                opened.run_id, metrics=[Metric(name, value, now_ms, step) for (name, step), value in part]
            )
            opened.sent.update(key for key, _ in part)

    def send_files(self, record: RunRecord) -> None:
        """Sends the files; each takes the place of an earlier one of its name."""
        with tempfile.TemporaryDirectory(prefix="maskfleet-tracking-") as folder:
            record.write_files(Path(folder))
            self._client.log_artifacts(self._opened[record.id].run_id, folder)

    def end(self, record: RunRecord, status: str) -> None:
        """Marks the run as ended: "FINISHED", "FAILED" or "KILLED"."""
        run_id = self._opened[record.id].run_id
        if self._client.get_run(run_id).info.status != status:
            self._client.set_terminated(run_id, status)

    def forget(self, record: RunRecord) -> None:
        """Has MLflow asked anew what the run has, after a failure that may have left something behind."""
        self._opened.pop(record.id, None)

    def place_of(self, record: RunRecord) -> str:
        """Where people find the run: its page on the server, or its id and the folder; "" where it was not opened."""
        opened = self._opened.get(record.id)
        if opened is None:
            return ""
        if self.folder is not None:
            return f"{opened.run_id} in {self.folder}"
        return f"{self.uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{opened.run_id}"

    def _find_experiment(self) -> str | None:
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            raise ConfigError(
                f"tracking.experiment: {self.experiment!r} was deleted at {self.uri}; restore it there, or give "
                "another name"
            )
        return experiment.experiment_id

    def _find_or_make_experiment(self) -> str:
        from mlflow import MlflowException

        if not self._experiment_id:
            found = self._find_experiment()
            if found is None:
                try:
                    found = self._client.create_experiment(self.experiment)
                except MlflowException:
                    if (found := self._find_experiment()) is None:  # not made by another command meanwhile
                        raise
            self._experiment_id = found
        return self._experiment_id

    def _find(self, record: RunRecord) -> Run | None:
        """The oldest run that has the record's id and was not deleted."""
        runs = self._client.search_runs(
            [self._find_or_make_experiment()],
            f"tags.`{ID_TAG}` = '{record.id}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return runs[0] if runs else None

    def _send_settings(self, run: Run, settings: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Sends the parameters that the run lacks, and the tags.

        MLflow's parameters never change: what differs from the run's own is named in a tag.
        """
        from mlflow.entities import Param, RunTag

        parameters = {_to_name(key): _to_text(value) for key, value in settings.items()}
        there = run.data.params
        changed = [f"{key}={value}" for key, value in parameters.items() if there.get(key, value) != value]
        tags = {**tags, CHANGED_TAG: ", ".join(changed)} if changed else tags
        self._client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        missing = [Param(key, value) for key, value in parameters.items() if key not in there]
        for part in _parts(missing, _MAX_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=part)

    def _values_of(self, run: Run) -> set[tuple[str, int]]:
        """(metric, step) of each value that the run has."""
        histories = (self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
        return {(metric.key, metric.step) for history in histories for metric in history}


def _load_mlflow() -> None:
    os.environ.update(_ALWAYS)
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401  # late: an optional package, which takes seconds to import
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracking.uri: MLflow is not installed here ({error}); pip install 'maskfleet[tracking]'"
        ) from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"tracking.uri: {folder} is a file; allowed is a folder, or a tracking server")
    if folder.exists() and not (folder / _TRASH).exists() and any(folder.iterdir()):
        raise ConfigError(f"tracking.uri: {folder} holds something that is no file store of MLflow's")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"tracking.uri: {existing} cannot be written")


def reason_of(error: BaseException) -> str:
    """What went wrong in one line: the system's own word of a connection, or the first words of MLflow's message."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if any("Timeout" in type(each).__name__ for each in chain):
        return "it does not answer in time"
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    text = " ".join(str(error).split(". Response body:")[0].split())
    return text[:_MAX_REASON] or type(error).__name__


def _to_name(key: str) -> str:
    """A setting's key as the name of a parameter: what MLflow does not take in one becomes `_`."""
    return re.sub(r"[^\w.-]", "_", key)[:250]


def _to_text(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value, ensure_ascii=False)
    return text[:_MAX_PARAMETER]


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
