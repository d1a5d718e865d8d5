"""Training through Ray Train, with real kills; the loop itself is tested in test_train_loop.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from jobs.config.load import to_plain, to_yaml
from jobs.config.train import TrainConfig
from jobs.training.loop import TrainingRun, Worker
from jobs.training.output import TrainingOutput
from jobs.training.train import TrainEvent, TrainingFailed, prepare_train, run_train
from model.checkpoint import Checkpoint
from pipeline.dataset.shapes import draw_shapes
from tests.paths import ROOT
from tests.specs import small_spec

SPEC = small_spec(channels=16, sides=(64, 80))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=10, num_val=2, num_unlabelled=0, image_size=(64, 80), max_shapes=3)
    return folder


def settings(shapes: Path, output: Path, **train: Any) -> TrainConfig:
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


def newest(output: Path) -> Checkpoint:
    found = TrainingOutput(str(output)).load_newest()
    assert found is not None
    return found[1]


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = newest(first), newest(second)
    assert one.progress == two.progress and one.progress["finished"]
    assert one.sha256 == two.sha256


def _undisturbed(rank: int, values: dict[str, Any], world_size: int) -> None:
    torch.set_num_threads(1)  # as cpus_per_worker: the order of sums is part of the result
    if world_size > 1:
        meet = f"file://{values['output']['uri']}.meet"
        torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    worker = Worker(rank=rank, world_size=world_size, local_world_size=world_size, device=torch.device("cpu"))
    TrainingRun(TrainConfig.model_validate(values), worker, lambda kind, sentence, **values: None).run()
    if world_size > 1:
        torch.distributed.destroy_process_group()


def test_a_killed_worker_costs_no_exactness(ray_cluster: None, shapes: Path, tmp_path: Path):
    """Two workers; rank 1 is killed at step 5, after the checkpoint of step 4."""
    pids: dict[int, int] = {}
    events: list[TrainEvent] = []

    def kill_once(event: TrainEvent) -> None:
        events.append(event)
        if event.kind == "started":
            pids[event.rank] = event.values["pid"]
        if event.kind == "step" and event.values["step"] == 5 and sum(e.kind == "started" for e in events) == 2:
            os.kill(pids[1], signal.SIGKILL)

    config = settings(shapes, tmp_path / "killed", num_workers=2, max_steps=30)
    result = run_train(prepare_train(config), on_progress=kill_once)
    assert result.num_restarts == 1 and [event.kind for event in events].count("restart") == 1
    assert next(e.values["step"] for e in events if e.kind == "resume") in range(4, 30, 2)
    assert result.step == 30 and result.last_metrics["step"] == 30

    values = to_plain(settings(shapes, tmp_path / "whole", num_workers=2, max_steps=30))
    mp.spawn(_undisturbed, args=(values, 2), nprocs=2)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_a_training_that_cannot_go_on_ends_at_once_with_the_reason(ray_cluster: None, shapes: Path, tmp_path: Path):
    started: list[TrainEvent] = []
    with pytest.raises(TrainingFailed, match=r"images of the batch: .*train\.max_non_finite_steps allows 0"):
        run_train(
            prepare_train(settings(shapes, tmp_path, learning_rate=100.0, max_steps=50, max_non_finite_steps=0)),
            on_progress=lambda event: started.append(event) if event.kind == "started" else None,
        )
    assert len(started) == 1, "trying again would end the same way"


def test_more_workers_than_the_cluster_has_room_for_are_refused(ray_cluster: None, shapes: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.num_workers: 3 needs 3 CPUs, the cluster has 2"):
        run_train(prepare_train(settings(shapes, tmp_path / "out", num_workers=3)))
    assert not (tmp_path / "out").exists()


def test_a_killed_driver_goes_on_by_the_same_command(shapes: Path, tmp_path: Path):
    """The whole program is killed with SIGKILL in the middle and started again; one worker."""
    config = settings(shapes, tmp_path / "killed", max_steps=60, checkpoint_every_steps=10, num_to_keep=2)
    _undisturbed(0, to_plain(settings(shapes, tmp_path / "whole", max_steps=60, checkpoint_every_steps=10)), 1)

    (tmp_path / "train.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "jobs", "train", "--config", str(tmp_path / "train.yaml")]
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
