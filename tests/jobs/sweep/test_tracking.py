"""A sweep as MLflow runs: the trials' below the sweep's own, each ended as its trial was."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config.sweep import SweepConfig
from jobs.sweep.results import TrialRow, make_row
from jobs.sweep.tracking import track_sweep
from jobs.training.output import TrainingOutput, checkpoint_name
from model.checkpoint_folder import CHECKPOINT_MARKER
from pipeline.storage.local import LocalStorage
from tests.jobs.tracking.stores import files_of, points, runs_in
from tests.jobs.training.small_trainings import train_config


def sweep_config(out: Path, store: Path | None) -> SweepConfig:
    return SweepConfig.model_validate(
        {"sweep": {}, "output": {"uri": str(out)}, "tracking": {"uri": str(store) if store else None}}
    )


def trained(output: TrainingOutput, num_steps: int) -> None:
    """Leaves what a training leaves of its metrics, and a checkpoint of its last step."""
    output.write_metrics([{"step": step, "epoch": 0.5, "loss": 1.0 / step} for step in range(1, num_steps + 1)])
    output.write_file(f"checkpoints/{checkpoint_name(num_steps)}/{CHECKPOINT_MARKER}", b"{}")


def row(name: str, output: TrainingOutput, error: str | None) -> TrialRow:
    return TrialRow(name, error, {}, 0, {}, None, 0, 0.0, None, None, output.uri)


def test_trials_are_nested_and_found_again_by_the_next_start(tmp_path: Path) -> None:
    out, store = tmp_path / "sweep", tmp_path / "ml"
    trials = {name: train_config(tmp_path, out / "trials" / name) for name in ("a", "b", "c")}
    outputs = {name: TrainingOutput(config.output.uri) for name, config in trials.items()}
    config, storage = sweep_config(out, store), LocalStorage(out)
    storage.write_bytes("sweep.yaml", b"sweep: {}")

    with pytest.raises(KeyboardInterrupt), track_sweep(config, storage, trials, print) as tracked:
        trained(outputs["a"], 2)
        tracked.update("a")
        tracked.end_trial("a", None)
        trained(outputs["b"], 1)
        tracked.update("b")
        raise KeyboardInterrupt
    statuses = {run.info.run_name: run.info.status for run in runs_in(store)}
    assert statuses == {"sweep": "KILLED", "a": "FINISHED", "b": "KILLED"}

    with track_sweep(config, storage, trials, print) as tracked:
        trained(outputs["b"], 3)
        tracked.update("b")
        tracked.end_trial("b", None)
        storage.write_bytes("results.md", b"# Results")
        tracked.end([row(name, outputs[name], "no data" if name == "c" else None) for name in trials])
    by_name = {run.info.run_name: run for run in runs_in(store)}
    statuses = {name: run.info.status for name, run in by_name.items()}
    assert len(runs_in(store)) == 4, "no trial has two runs"
    assert statuses == {"sweep": "FAILED", "a": "FINISHED", "b": "FINISHED", "c": "FAILED"}
    parent = by_name["sweep"].info.run_id
    assert all(by_name[name].data.tags["mlflow.parentRunId"] == parent for name in trials)
    assert points(store, by_name["b"], "loss/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert files_of(store, by_name["sweep"]) == {"sweep.yaml", "results.md"}
    assert tracked.outcome == f"MLflow run sweep: {parent} in {store}"


def test_without_a_store_nothing_is_done(tmp_path: Path) -> None:
    trials = {"a": train_config(tmp_path, tmp_path / "a")}
    with track_sweep(sweep_config(tmp_path, None), LocalStorage(tmp_path), trials, print) as tracked:
        tracked.update("a")
        tracked.end_trial("a", None)
        tracked.end([make_row("a", {}, 0, TrainingOutput(str(tmp_path / "a")), None)])
    assert tracked.outcome == "" and not [*tmp_path.iterdir()]
