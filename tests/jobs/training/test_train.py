"""`maskfleet train`: what is refused before it starts, and trainings on Ray Train with processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from jobs.config.load import ConfigError, to_plain, to_yaml
from jobs.config.train import TrainConfig
from jobs.training.events import TrainEvent
from jobs.training.loop import TrainingRun, Worker
from jobs.training.output import TrainingOutput
from jobs.training.train import (
    TrainingFailed,
    check_same_training,
    prepare_train,
    run_train,
    run_train_here,
    to_saved,
)
from pipeline.dataset.shapes import draw_shapes
from pipeline.storage.files import Location
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY
from tests.chaos.s3 import make_bucket, settings_for
from tests.jobs.training.small_trainings import SPEC, newest_checkpoint, train, train_config
from tests.paths import ROOT
from tests.specs import small_spec


def ray_config(shapes: Path, output: Path, **train: Any) -> TrainConfig:
    """One image a step and worker, a checkpoint every two steps; `train` overrides keys of the train section."""
    values = {"max_steps": 8, "batch_size": 1, "data_workers": 1, "learning_rate": 0.01, "schedule": "cosine"}
    values |= {"checkpoint_every_steps": 2, "log_every_steps": 1, "cpus_per_worker": 1, **train}
    return TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {"train": str(shapes / "train.json")},
            "train": values,
            "output": {"uri": str(output)},
            "cluster": {"num_cpus": 2, "num_gpus": 0},
        }
    )


def assert_same_weights(first: Path, second: Path) -> None:
    """Both trainings ended with the very same checkpoint, after the same number of images."""
    first_checkpoint, second_checkpoint = newest_checkpoint(first), newest_checkpoint(second)
    assert first_checkpoint.progress == second_checkpoint.progress and first_checkpoint.progress["finished"]
    assert first_checkpoint.sha256 == second_checkpoint.sha256


def train_undisturbed(rank: int, values: dict[str, Any], world_size: int) -> None:
    """One worker of a training without Ray; with several of them, they meet through a file beside the output."""
    torch.set_num_threads(1)  # as cpus_per_worker: the order of sums is part of the result
    if world_size > 1:
        meet = f"file://{values['output']['uri']}.meet"
        torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    worker = Worker(rank=rank, world_size=world_size, local_world_size=world_size, device=torch.device("cpu"))
    TrainingRun(TrainConfig.model_validate(values), worker, lambda kind, sentence, **values: None).run()
    if world_size > 1:
        torch.distributed.destroy_process_group()


class TestRefusals:
    def test_a_finished_training_says_so_and_returns_without_ray(self, shapes: Path, tmp_path: Path):
        config = train_config(shapes, tmp_path)
        TrainingOutput(str(tmp_path)).write_config(to_saved(prepare_train(config).config))
        train(config)
        plan = prepare_train(config)
        assert plan.is_finished and "6 of 6 steps are done" in plan.describe()
        said: list[str] = []
        result = run_train(plan, on_progress=lambda event: said.append(event.kind))
        assert result.was_finished and result.step == 6 and said == []
        assert result.describe() == f"was finished before, nothing was done: 6 steps -> {result.checkpoint_uri}"
        assert result.checkpoint_uri.endswith("checkpoints/step-00000006")

    def test_other_settings_are_refused_field_by_field(self, shapes: Path, tmp_path: Path):
        output = TrainingOutput(str(tmp_path))
        output.write_config(to_saved(prepare_train(train_config(shapes, tmp_path)).config))
        changed = train_config(shapes, tmp_path, learning_rate=0.5, seed=3, log_every_steps=7)
        with pytest.raises(ValueError) as caught:
            prepare_train(changed)
        sentence = str(caught.value)
        rows = [line.split() for line in sentence.splitlines()[2:-1]]
        assert rows == [["train.learning_rate", "0.01", "0.5"], ["train.seed", "0", "3"]]
        assert "log_every_steps" not in sentence and str(tmp_path) in sentence
        prepare_train(train_config(shapes, tmp_path, log_every_steps=7, data_workers=2))  # not what is trained

    @pytest.mark.parametrize(("schedule", "allowed"), [("constant", True), ("cosine", False)])
    def test_a_longer_training_goes_on_only_where_no_step_done_would_differ(
        self, shapes: Path, tmp_path: Path, schedule: str, allowed: bool
    ):
        output = TrainingOutput(str(tmp_path))
        output.write_config(to_saved(train_config(shapes, tmp_path, schedule=schedule)))
        longer = to_saved(train_config(shapes, tmp_path, schedule=schedule, max_steps=60))
        if allowed:
            check_same_training(output, longer, num_done=4, num_images=10)
        else:
            with pytest.raises(ValueError, match=r"train\.max_steps +6 +60"):
                check_same_training(output, longer, num_done=4, num_images=10)

    def test_a_wrong_number_of_classes_and_no_data_are_refused_with_nothing_written(self, shapes: Path, tmp_path: Path):
        values = to_plain(train_config(shapes, tmp_path / "out"))
        values["model"]["spec"]["num_classes"] = 7
        with pytest.raises(
            ValueError, match=r"model\.spec\.num_classes is 7, but .* 3 categories \(circle, square, tri"
        ):
            prepare_train(TrainConfig.model_validate(values))
        values["data"]["train"] = str(tmp_path / "nothing.json")
        with pytest.raises(ValueError, match=r"nothing\.json"):
            prepare_train(TrainConfig.model_validate(values))
        assert not (tmp_path / "out").exists()

    def test_norms_that_cannot_work_here_are_refused(self, shapes: Path, tmp_path: Path):
        values = to_plain(train_config(shapes, tmp_path / "out"))
        values["model"]["spec"]["norm"] = "frozen_batch"
        with pytest.raises(ConfigError, match=r"model\.spec\.norm: 'frozen_batch' is not allowed without"):
            prepare_train(TrainConfig.model_validate(values))
        values["model"]["spec"] |= {"norm": "group", "head_norm": "sync_batch"}
        prepare_train(TrainConfig.model_validate(values))
        values["train"]["num_workers"] = 2
        with pytest.raises(ConfigError, match=r"model\.spec\.head_norm: 'sync_batch' is not allowed with several"):
            prepare_train(TrainConfig.model_validate(values))

    def test_a_validation_set_with_an_unknown_category_is_refused(self, shapes: Path, tmp_path: Path):
        content = json.loads((shapes / "val.json").read_text())
        content["categories"][0]["name"] = "hexagon"
        (tmp_path / "val.json").write_text(json.dumps(content))
        values = to_plain(train_config(shapes, tmp_path / "out", validate_every_steps=1))
        values["data"] |= {"val": str(tmp_path / "val.json"), "val_image_root": str(shapes / "val")}
        with pytest.raises(ValueError, match="hexagon"):
            prepare_train(TrainConfig.model_validate(values))
        values["data"]["val"] = None
        with pytest.raises(ValueError, match=r"data\.val is null"):
            prepare_train(TrainConfig.model_validate(values))

    def test_validation_without_a_validation_set_is_refused(self, shapes: Path, tmp_path: Path):
        config = train_config(shapes, tmp_path, validate_every_epochs=0.5)
        config = config.model_copy(update={"data": config.data.model_copy(update={"val": None})})
        with pytest.raises(ValueError, match=r"train\.validate_every_epochs is set, but data\.val is null"):
            prepare_train(config)

    def test_wanted_classes_are_refused_twice_and_noted_where_no_annotation_has_them(
        self, shapes: Path, tmp_path: Path
    ):
        config = train_config(shapes, tmp_path)

        def plan_with(*classes: str) -> tuple[str, ...]:
            data = config.data.model_copy(update={"classes": classes})
            return prepare_train(config.model_copy(update={"data": data})).notes

        assert plan_with("circle", "square", "triangle", "star") == (
            "data.train: classes without an object ('star'): 1",
        )
        with pytest.raises(ValueError, match="the class 'circle' is wanted twice"):
            plan_with("circle", "square", "triangle", "circle")

    def test_a_set_of_crowds_alone_is_refused(self, shapes: Path, tmp_path: Path):
        content = json.loads((shapes / "train.json").read_text())
        for entry in content["annotations"]:
            entry["iscrowd"] = 1
        (tmp_path / "train.json").write_text(json.dumps(content))
        values = to_plain(train_config(shapes, tmp_path / "out"))
        values["data"] |= {"train": str(tmp_path / "train.json"), "image_root": str(shapes / "train")}
        with pytest.raises(ValueError, match=r"train\.json has no object to learn"):
            prepare_train(TrainConfig.model_validate(values))
        assert not (tmp_path / "out").exists()


class TestResumedData:
    """What a resumed training says of annotations that are no longer those it was started with."""

    def config(self, shapes: Path, folder: Path, max_steps: int) -> TrainConfig:
        config = train_config(shapes, folder / "out", max_steps=max_steps, schedule="constant")
        data = config.data.model_copy(update={"train": str(folder / "train.json"), "image_root": str(shapes / "train")})
        return config.model_copy(update={"data": data})

    def start(self, shapes: Path, folder: Path) -> TrainConfig:
        """Trains two steps on a copy of the shapes' annotations, `folder/train.json`; returns the settings."""
        (folder / "train.json").write_text((shapes / "train.json").read_text())
        run_train_here(prepare_train(self.config(shapes, folder, 2)))
        return self.config(shapes, folder, 2)

    def change(self, folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads((folder / "train.json").read_text())
        change(content)
        (folder / "train.json").write_text(json.dumps(content))

    def test_other_classes_are_refused_with_the_difference(self, shapes: Path, tmp_path: Path):
        config = self.start(shapes, tmp_path)
        assert prepare_train(config).notes == ()

        def swap_names(content: dict[str, Any]) -> None:
            first, _, third = content["categories"]
            first["name"], third["name"] = third["name"], first["name"]

        self.change(tmp_path, swap_names)
        with pytest.raises(ValueError, match=r'label 1 +"10 circle" +"10 triangle"\n +label 3 +"30 triangle"'):
            prepare_train(config)
        self.change(tmp_path, swap_names)
        self.change(tmp_path, lambda content: content["categories"].append({"id": 40, "name": "star"}))
        with pytest.raises(ValueError, match=r'label 4 +null +"40 star"'):
            prepare_train(config)

    def test_changed_annotations_are_noted_once(self, shapes: Path, tmp_path: Path):
        config = self.start(shapes, tmp_path)
        self.change(tmp_path, lambda content: content["annotations"].pop())
        (note,) = prepare_train(config).notes
        assert note.startswith("the annotations of data.train have changed since this training was started")
        said: list[str] = []
        longer = self.config(shapes, tmp_path, 3)
        run_train_here(prepare_train(longer), on_progress=lambda event: said.append(event.describe()))
        assert f"note: {note}" in said
        assert prepare_train(longer).notes == ()

    def test_a_training_from_before_the_hash_was_written_is_resumed(self, shapes: Path, tmp_path: Path):
        config = self.start(shapes, tmp_path)
        (tmp_path / "out/annotations.json").unlink()
        self.change(tmp_path, lambda content: content["annotations"].pop())
        assert prepare_train(config).notes == ()


@pytest.mark.long
def test_a_killed_worker_does_not_change_the_weights(ray_cluster: None, shapes: Path, tmp_path: Path):
    """Two workers; rank 1 is killed at step 5, after the checkpoint of step 4."""
    pids: dict[int, int] = {}
    events: list[TrainEvent] = []

    def kill_once(event: TrainEvent) -> None:
        events.append(event)
        if event.kind == "started":
            pids[event.rank] = event.values["pid"]
        if event.kind == "step" and event.values["step"] == 5 and sum(e.kind == "started" for e in events) == 2:
            os.kill(pids[1], signal.SIGKILL)

    config = ray_config(shapes, tmp_path / "killed", num_workers=2, max_steps=30)
    result = run_train(prepare_train(config), on_progress=kill_once)
    assert result.num_restarts == 1 and [event.kind for event in events].count("restart") == 1
    assert next(e.values["step"] for e in events if e.kind == "resume") in range(4, 30, 2)
    assert result.step == 30 and result.last_metrics["step"] == 30

    values = to_plain(ray_config(shapes, tmp_path / "whole", num_workers=2, max_steps=30))
    spawn(train_undisturbed, args=(values, 2), nprocs=2)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
def test_a_training_that_cannot_go_on_ends_at_once_with_the_reason(ray_cluster: None, shapes: Path, tmp_path: Path):
    started: list[TrainEvent] = []
    with pytest.raises(TrainingFailed, match=r"images of the batch: .*train\.max_non_finite_steps allows 0"):
        run_train(
            prepare_train(ray_config(shapes, tmp_path, learning_rate=100.0, max_steps=50, max_non_finite_steps=0)),
            on_progress=lambda event: started.append(event) if event.kind == "started" else None,
        )
    assert len(started) == 1, "trying again would end the same way"


def test_more_workers_than_the_cluster_has_room_for_are_refused(ray_cluster: None, shapes: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.num_workers: 3 needs 3 CPUs, the cluster has 2"):
        run_train(prepare_train(ray_config(shapes, tmp_path / "out", num_workers=3)))
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_killed_driver_goes_on_by_the_same_command(shapes: Path, tmp_path: Path):
    """The whole program is killed with SIGKILL in the middle and started again; one worker."""
    config = ray_config(shapes, tmp_path / "killed", max_steps=60, checkpoint_every_steps=10, num_to_keep=2)
    train_undisturbed(0, to_plain(ray_config(shapes, tmp_path / "whole", max_steps=60, checkpoint_every_steps=10)), 1)

    (tmp_path / "train.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "maskfleet", "train", "--config", str(tmp_path / "train.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = TrainingOutput(str(tmp_path / "killed"))
    with (tmp_path / "log.txt").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        while not output.steps() and first.poll() is None:
            time.sleep(0.02)
        first.kill()
        first.wait()
    assert first.returncode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert max(output.steps()) < 60, "the kill came too late to mean anything"

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert "going on after step" in second.stdout + second.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
def test_workers_reach_photos_in_a_bucket_by_the_settings_alone(ray_cluster: None, moto: str):
    """Neither the environment nor the cluster knows of the store, which is moto's server."""
    settings = settings_for(moto)
    uri = f"s3://{make_bucket(moto)}"
    data = Location(f"{uri}/data", settings)
    draw_shapes(data, num_train=3, num_val=1, num_unlabelled=0, image_size=(48, 64), max_shapes=2)
    config = TrainConfig.model_validate(
        {
            "model": {"spec": small_spec().to_dict()},
            "data": {"train": f"{uri}/data/train.json", "val": f"{uri}/data/val.json"},
            "train": {"max_steps": 2, "batch_size": 1, "data_workers": 1, "validate_every_steps": 2},
            "output": {"uri": f"{uri}/model"},
            "storage": {
                "endpoint_url": moto,
                "region": "us-east-1",
                "access_key": ACCESS_KEY,
                "secret_key": SECRET_KEY,
            },
        }
    )
    result = run_train(prepare_train(config))
    assert result.step == 2 and not result.broken_images and "segm_AP" in result.last_metrics
    assert "secret_key" not in str(TrainingOutput(f"{uri}/model", settings).read_config())
