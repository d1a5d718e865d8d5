"""Every file in configs/ loads, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config.base import Section
from jobs.config.load import load_config
from jobs.config.manifests import ManifestsConfig
from jobs.config.results import EvaluateConfig
from jobs.config.schedule import ScheduleConfig
from jobs.config.segment import SegmentConfig
from jobs.config.sweep import SweepConfig
from jobs.config.train import TrainConfig
from jobs.sweep.run import iter_trials
from model.spec import ModelSpec
from pipeline.storage.stores import open_storage
from tests.paths import ROOT

KINDS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "sweep": SweepConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
    "schedule": ScheduleConfig,
    "manifests": ManifestsConfig,
}
# What a file may leave to the command line.
PLACES = {
    "train": {"data.train": "x", "data.val": "x", "output.uri": "x"},
    "sweep": {"output.uri": "x"},
    "segment": {"model.checkpoint": "x", "input.uri": "x", "output.uri": "x"},
    "evaluate": {"run.uri": "x", "ground_truth.uri": "x"},
    "schedule": {},
    "manifests": {},
}


def test_the_tiny_network_is_the_same_in_code_and_config() -> None:
    places = [f"{key}={value}" for key, value in PLACES["train"].items()]
    config = load_config(TrainConfig, ROOT / "configs/train/tiny_cpu.yaml", places)
    assert config.model.spec == ModelSpec.tiny(num_classes=0)


# What is in configs/cluster is made by `maskfleet manifests` and tested there.
FILES = sorted(path for path in ROOT.glob("configs/*/*.yaml") if path.parent.name != "cluster")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_config_loads_and_explains_itself(path: Path) -> None:
    kind = path.parent.name
    load_config(KINDS[kind], path, [f"{key}={value}" for key, value in PLACES[kind].items()])
    head = path.read_text().split("\n\n")[0]
    source = ("# Source:",) if kind in ("train", "sweep") else ()
    for word in ("# Purpose:", *source, "# Hardware:", "# Expect:", "# Command:"):
        assert word in head, f"{path.name} does not say {word}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/sweep/*.yaml")), ids=lambda p: p.name)
def test_every_trial_of_a_sweep_is_a_training(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    words = [f"output.uri={tmp_path}"]
    if "draw:" not in path.read_text():
        words += ["sweep.fixed.data.train=x", "sweep.fixed.data.val=x"]
    config = load_config(SweepConfig, path, words)
    names = [trial.name for trial in iter_trials(config, open_storage(str(tmp_path)))]
    assert len(names) == len(set(names)) > 1 and not list(tmp_path.iterdir())
