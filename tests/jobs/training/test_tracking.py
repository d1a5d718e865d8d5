"""A training as an MLflow run: what is sent of its output, and one run however often it is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.config.load import ConfigError, to_plain, to_yaml
from jobs.config.train import TrainConfig
from jobs.terminal import Exit
from jobs.tracking.store import CHANGED_TAG, ID_FILE
from jobs.training.events import TrainEvent
from jobs.training.output import TrainingOutput, checkpoint_name
from jobs.training.tracking import to_record, track_training
from jobs.training.train import prepare_train, run_train_here
from model.checkpoint_folder import CHECKPOINT_MARKER
from tests.jobs.drawn_runs import call
from tests.jobs.tracking.stores import files_of, points, runs_in
from tests.jobs.training.small_trainings import train_config
from tests.paths import ROOT

FILES = {"config.yaml", "metrics.parquet", "best.json", "summary.html", "curves.png"}


def tracked(config: TrainConfig, store: Path, **tracking: Any) -> TrainConfig:
    return TrainConfig.model_validate({**to_plain(config), "tracking": {"uri": str(store), **tracking}})


def add_checkpoint(output: TrainingOutput, step: int) -> None:
    output.write_file(f"checkpoints/{checkpoint_name(step)}/{CHECKPOINT_MARKER}", b"{}")


class TestRecord:
    def test_rows_end_with_the_newest_checkpoint(self, shapes: Path, tmp_path: Path):
        """What lies after it is done again by a resumed training, with times and speeds of its own."""
        output = TrainingOutput(str(tmp_path))
        output.write_metrics([{"step": step, "epoch": step / 5, "loss": 1.0, "loss_mask": 0.5} for step in range(1, 5)])
        record = to_record(train_config(shapes, tmp_path), output, "name")
        assert record.read_rows() == []
        add_checkpoint(output, 2)
        assert [row["step"] for row in record.read_rows()] == [1, 2]
        assert record.read_rows()[0] == {"step": 1, "training/epoch": 0.2, "loss/loss": 1.0, "loss/mask": 0.5}

    def test_files_are_those_that_are_there(self, shapes: Path, tmp_path: Path):
        output = TrainingOutput(str(tmp_path / "out"))
        output.write_metrics([{"step": 1}])
        (tmp_path / "sent").mkdir()
        to_record(train_config(shapes, tmp_path / "out"), output, "name").write_files(tmp_path / "sent")
        assert [file.name for file in (tmp_path / "sent").iterdir()] == ["metrics.parquet"]

    def test_what_is_planted_as_a_secret_is_in_no_setting_tag_or_file(self, shapes: Path, tmp_path: Path):
        values = to_plain(train_config(shapes, tmp_path / "out"))
        values["storage"] |= {"access_key": "hush-7f3a-a", "secret_key": "hush-7f3a-b", "session_token": "hush-7f3a-c"}
        config = tracked(TrainConfig.model_validate(values), tmp_path / "ml")
        config = config.model_copy(update={"storage": TrainConfig.model_validate(values).storage})
        assert config.storage.secret_key is not None and config.storage.secret_key.reveal() == "hush-7f3a-b"
        run_train_here(prepare_train(config))
        held = b"".join(file.read_bytes() for file in (tmp_path / "ml").rglob("*") if file.is_file())
        assert b"train.max_steps" in held or [*(tmp_path / "ml").rglob("train.max_steps")]
        assert b"hush-7f3a" not in held

    def test_a_server_that_refuses_leaves_the_events_alone(self, shapes: Path, tmp_path: Path):
        config = tracked(train_config(shapes, tmp_path), Path("unused"))
        config = config.model_copy(
            update={"tracking": config.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})}
        )
        with pytest.raises(ConfigError, match=r"tracking\.uri: MLflow at http://127\.0\.0\.1:9 cannot be used"):
            prepare_train(config)
        with (
            pytest.raises(ConfigError),
            track_training(config, TrainingOutput(str(tmp_path)), print, is_finished=False),
        ):
            pytest.fail("the training has begun")


def test_one_run_holds_a_training_that_was_cut_off_and_resumed(shapes: Path, tmp_path: Path) -> None:
    config = tracked(train_config(shapes, tmp_path / "out", validate_every_steps=3), tmp_path / "ml", run_name="mine")

    def cut_off(event: TrainEvent) -> None:
        if event.kind == "step" and event.values["step"] == 5:
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        run_train_here(prepare_train(config), on_progress=cut_off)
    (run,) = runs_in(tmp_path / "ml")
    assert run.info.status == "FAILED"
    assert [step for step, _ in points(tmp_path / "ml", run, "loss/loss")] == [1, 2, 3, 4]

    result = run_train_here(prepare_train(config))
    assert result.tracking == f"MLflow run mine: {run.info.run_id} in {tmp_path / 'ml'}"
    assert result.describe().splitlines()[-1] == result.tracking
    (run,) = runs_in(tmp_path / "ml")
    assert run.info.status == "FINISHED" and run.info.run_name == "mine"
    rows = TrainingOutput(str(tmp_path / "out")).read_metrics()
    for metric, column in (("loss/loss", "loss"), ("validation/bbox_AP", "bbox_AP"), ("training/images_per_s",) * 2):
        column = column.removeprefix("training/")
        held = [(row["step"], row[column]) for row in rows if column in row]
        assert points(tmp_path / "ml", run, metric) == held and len(held) >= 2, metric
    assert files_of(tmp_path / "ml", run) == FILES
    assert run.data.params["train.max_steps"] == "6" and CHANGED_TAG not in run.data.tags
    assert run.data.tags["maskfleet.output_uri"] == str(tmp_path / "out")
    assert run.data.tags["maskfleet.data"] == str(shapes / "train.json")

    assert run_train_here(prepare_train(config)).tracking == result.tracking
    assert len(runs_in(tmp_path / "ml")) == 1, "a finished training is sent what it lacks"
    other = tracked(config, tmp_path / "other")
    assert run_train_here(prepare_train(other)).was_finished
    (copied,) = runs_in(tmp_path / "other")
    assert points(tmp_path / "other", copied, "loss/loss") == points(tmp_path / "ml", run, "loss/loss")


def test_the_best_checkpoint_is_sent_where_it_is_asked_for(shapes: Path, tmp_path: Path) -> None:
    config = tracked(train_config(shapes, tmp_path / "out", max_steps=2), tmp_path / "ml", checkpoints=True)
    run_train_here(prepare_train(config))
    (run,) = runs_in(tmp_path / "ml")
    sent = files_of(tmp_path / "ml", run, "checkpoints/step-00000002")
    kept = {f"checkpoints/step-00000002/{file.name}" for file in (tmp_path / "out/checkpoints/step-00000002").iterdir()}
    assert sent == kept and any(name.endswith("model.safetensors") for name in sent)


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_program_ends_with_2_before_it_looks_at_data(tmp_path: Path, dry_run: bool) -> None:
    words = ["train", "data.train=/no/such.json", f"output.uri={tmp_path / 'out'}", "train.max_steps=1"]
    text = call(*words, "tracking.uri=http://127.0.0.1:9", *["--dry-run"] * dry_run, code=Exit.BAD_INPUT)
    assert "tracking.uri: MLflow at http://127.0.0.1:9 cannot be used: Connection refused" in text
    assert not (tmp_path / "out").exists()


def test_without_tracking_nothing_is_written_for_it(shapes: Path, tmp_path: Path) -> None:
    result = run_train_here(prepare_train(train_config(shapes, tmp_path / "out", max_steps=1)))
    assert result.tracking == "" and not (tmp_path / "out" / ID_FILE).exists()
    assert "tracking" not in (TrainingOutput(str(tmp_path / "out")).read_config() or {})


@pytest.mark.long
def test_a_driver_killed_in_the_middle_goes_on_in_the_same_run(shapes: Path, tmp_path: Path) -> None:
    """The whole program on Ray is killed with SIGKILL and started again by the same command."""
    config = tracked(
        train_config(shapes, tmp_path / "out", max_steps=60, checkpoint_every_steps=5, validate_every_steps=30),
        tmp_path / "ml",
    )
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"num_cpus": 2, "num_gpus": 0})})
    (tmp_path / "train.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "maskfleet", "train", "--config", str(tmp_path / "train.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log.txt").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        while first.poll() is None and not _num_points(tmp_path / "ml"):
            time.sleep(0.02)
        first.kill()
        first.wait()
    assert first.returncode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    (run,) = runs_in(tmp_path / "ml")
    assert run.info.status == "RUNNING" and 0 < _num_points(tmp_path / "ml") < 60

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert "going on after step" in second.stdout + second.stderr
    (run,) = runs_in(tmp_path / "ml")
    assert run.info.status == "FINISHED" and f"MLflow run out: {run.info.run_id}" in second.stdout
    held = points(tmp_path / "ml", run, "loss/loss")
    rows = [row for row in TrainingOutput(str(tmp_path / "out")).read_metrics() if "loss" in row]
    assert held == [(row["step"], row["loss"]) for row in rows] and [step for step, _ in held] == [*range(1, 61)]
    assert [step for step, _ in points(tmp_path / "ml", run, "validation/bbox_AP")] == [30, 60]


def _num_points(store: Path) -> int:
    if not store.exists():
        return 0
    return sum(len(points(store, run, "loss/loss")) for run in runs_in(store) if "loss/loss" in run.data.metrics)
