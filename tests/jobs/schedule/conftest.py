"""Drawn data sets and evaluation figures for schedules that run no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import Metrics, evaluate_run
from tests.pipeline.made_run import image_row, write_run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two drawn data sets, 1 and 2, of two images each."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed in (1, 2):
        draw_shapes(str(folder / str(seed)), num_train=0, num_val=2, num_unlabelled=0, seed=seed)
    return folder


@pytest.fixture(scope="session")
def metrics(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """The figures of a run that detects nothing on the first data set."""
    truth = Truth.load(str(drawn / "1/val.json"))
    names = truth.file_names
    rows = [image_row(name, name, "ok", (64, 64), 0, 0) for name in names]
    folder = write_run(tmp_path_factory.mktemp("made") / "run", [(rows, [])])
    return evaluate_run(str(folder), truth)
