"""Costs of a run: counted over its rows and its commits, of one run and of several."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import open_run
from pipeline.results.costs import costs_of
from pipeline.runs import open_runs
from pipeline.tables import load_instances
from tests.jobs.drawn_runs import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over six drawn images in shards of two, whose commits say 0.5 s and 2 s an image; one that says none."""
    folder = tmp_path_factory.mktemp("costs")
    draw_shapes(str(folder / "data"), num_train=0, num_val=6, num_unlabelled=0, image_size=(64, 96))
    for name, seconds in (("a", 0.5), ("b", 2.0), ("silent", None)):
        write_run(folder / "data", folder / name, drop_every=0, shard_size=2, predict_s=seconds)
    return folder


def test_of_one_run(runs: Path) -> None:
    costs, rows = costs_of(open_run(str(runs / "a"))), load_instances(str(runs / "a"))
    assert costs.num_instances == len(rows) > 6 and costs.predict_s == 0.5
    assert costs.mask_px == rows["area_px"].mean() and costs.mask_bytes == rows["rle_counts"].map(len).mean()


def test_of_several_runs_the_rows_that_count_and_all_seconds(runs: Path) -> None:
    several = costs_of(open_runs([str(runs / "a"), str(runs / "b")]))
    assert several.num_instances == costs_of(open_run(str(runs / "b"))).num_instances and several.predict_s == 1.25


def test_images_that_could_not_be_read_cost_the_predictor_nothing(runs: Path) -> None:
    run = open_run(str(runs / "a"))
    path = runs / "a" / "final.json"
    before = path.read_bytes()
    assert run.final is not None
    path.write_bytes(replace(run.final, statuses={"ok": 2, "predict_failed": 1, "corrupt": 3}).to_json())
    assert costs_of(open_run(str(runs / "a"))).predict_s == 1.0
    path.write_bytes(replace(run.final, statuses={"corrupt": 6}).to_json())
    assert math.isnan(costs_of(open_run(str(runs / "a"))).predict_s)
    path.write_bytes(before)


def test_seconds_that_nothing_says_are_none(runs: Path) -> None:
    assert math.isnan(costs_of(open_run(str(runs / "silent"))).predict_s)
    assert math.isnan(costs_of(open_runs([str(runs / "a"), str(runs / "silent")])).predict_s)
