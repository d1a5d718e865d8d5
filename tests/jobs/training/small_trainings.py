"""Trainings of a few steps, run in the test's own process without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.config.train import TrainConfig
from jobs.training.loop import LoopResult, TrainingRun, Worker
from jobs.training.output import TrainingOutput
from model.checkpoint import Checkpoint
from tests.specs import small_spec

SPEC = small_spec(channels=16, sides=(64, 80))


def train_config(shapes: Path, output: Path, **train: Any) -> TrainConfig:
    """Six steps of two images with a checkpoint every two steps and no validation; `train` overrides keys."""
    section: dict[str, Any] = {"max_steps": 6, "batch_size": 2, "data_workers": 0, "learning_rate": 0.01}
    if "validate_every_epochs" not in train:
        section["validate_every_steps"] = 0
    section |= {"schedule": "cosine", "checkpoint_every_steps": 2, "log_every_steps": 1, "num_to_keep": None, **train}
    return TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {"train": str(shapes / "train.json"), "val": str(shapes / "val.json")},
            "train": section,
            "output": {"uri": str(output)},
        }
    )


def train(config: TrainConfig, on_event: Callable[..., None] = lambda kind, sentence, **values: None) -> LoopResult:
    """Runs the loop as the only worker, on the CPU; `on_event` is called as `jobs.training.loop.Report`."""
    return TrainingRun(config, Worker(), on_event).run()


def on_kind(kind: str, take: Callable[[dict[str, Any]], object]) -> Callable[..., None]:
    """A callback for `train` that passes the values of one kind of event to `take`."""

    def on_event(event_kind: str, sentence: str, **values: Any) -> None:
        if event_kind == kind:
            take(values)

    return on_event


def newest_checkpoint(output: Path | str) -> Checkpoint:
    """The newest checkpoint of a training output, which must have one."""
    newest = TrainingOutput(str(output)).load_newest()
    assert newest is not None
    return newest[1]


def assert_same_state(first: Any, second: Any, path: str = "") -> None:
    """Compares nested dicts and sequences of tensors and plain values bit for bit; `path` names the difference."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for name in first:
            assert_same_state(first[name], second[name], f"{path}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, (first_item, second_item) in enumerate(zip(first, second)):
            assert_same_state(first_item, second_item, f"{path}[{index}]")
    else:
        assert first == second, path
