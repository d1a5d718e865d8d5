"""What a file store of MLflow's holds, read by MLflow itself; and records to fill one with."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from jobs.config.tracking import TrackingSection
from jobs.tracking.store import RunRecord


def section_of(store: object, **values: Any) -> TrackingSection:
    return TrackingSection(uri=str(store), **values)


def client_of(store: object) -> MlflowClient:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow has its file store in maintenance, and asks for this
    return MlflowClient(tracking_uri=store.as_uri() if isinstance(store, Path) else str(store))


def runs_in(store: object, experiment: str = "maskfleet") -> list[Run]:
    """All runs of an experiment, deleted ones too, oldest first; none where there is no experiment."""
    client = client_of(store)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    return client.search_runs([found.experiment_id], "", ViewType.ALL, order_by=["attributes.start_time ASC"])


def points(store: object, run: Run, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in the order of its steps, each value that MLflow holds."""
    history = client_of(store).get_metric_history(run.info.run_id, metric)
    return sorted((each.step, each.value) for each in history)


def files_of(store: object, run: Run, folder: str = "") -> set[str]:
    return {info.path for info in client_of(store).list_artifacts(run.info.run_id, folder)}


def record(rows: Sequence[dict[str, float]], /, **values: Any) -> RunRecord:
    """A record of these rows, with one file `rows.txt`, which has their number; `values` are further attributes."""
    return RunRecord(
        **{
            "id": uuid.uuid4().hex,
            "name": "a run",
            "settings": {"train.max_steps": 3},
            "tags": {"maskfleet.model": "tiny"},
            "read_rows": lambda: list(rows),
            "write_files": lambda folder: (folder / "rows.txt").write_text(str(len(rows))),
            **values,
        }
    )
