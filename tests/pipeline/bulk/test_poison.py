"""Images that kill their worker or break the network cost one row each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jobs import segment as segment_job
from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from pipeline.bulk import run
from pipeline.bulk.attempts import MAX_DEATHS, begin_attempt
from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.faulty_predictors import DEADLY, NOT_FINITE, DeadlyPredictor, NotFinitePredictor


def test_deaths_of_one_driver_make_the_next_attempt_careful(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(MAX_DEATHS):
        assert not begin_attempt(storage, 7, f"a{number}", "driver").careful
    assert not begin_attempt(storage, 7, "b", "another driver").careful
    careful = begin_attempt(storage, 7, "c", "driver")
    assert careful.careful and careful.deadly == frozenset()
    careful.note(4)
    assert begin_attempt(storage, 7, "d", "driver").deadly == {4}
    assert not begin_attempt(storage, 8, "e", "driver").careful, "another shard"


@pytest.fixture
def marked(photos: Path, tmp_path: Path) -> Path:
    """Ten images, the third of which is marked."""
    folder = tmp_path / "marked"
    folder.mkdir()
    for i, source in enumerate(sorted(photos.rglob("roll-*/*.png"))[:10]):
        pixels = np.array(Image.open(source))
        pixels[0, 0] = (1, 2, 3)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def segment_with(predictor: type, mark: tuple, marked: Path, checkpoint: Path, out: Path, monkeypatch) -> pd.DataFrame:
    pixels = np.array(Image.open(marked / "2.png"))
    pixels[0, 0] = mark
    Image.fromarray(pixels).save(marked / "2.png")

    def segment_corpus(job, on_progress):
        return run.segment_corpus(dataclasses.replace(job, predictor=predictor), on_progress)

    monkeypatch.setattr(segment_job, "segment_corpus", segment_corpus)
    places = [f"model.checkpoint={checkpoint}", f"input.uri={marked}", f"output.uri={out}", "corpus.shard_size=5"]
    config = load_config(SegmentConfig, None, [*places, "segment.cpus_per_worker=1"])
    segment_job.run_segment(segment_job.prepare_segment(config))
    assert list(verify_run(open_run(str(out)))) == []
    return pd.read_parquet(out / "images").set_index("image_id")


@pytest.mark.usefixtures("ray_cluster")
def test_an_image_that_kills_its_worker_costs_one_row(
    marked: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = segment_with(DeadlyPredictor, DEADLY, marked, tiny_checkpoint, tmp_path / "run", monkeypatch)
    assert images.loc["2.png", "status"] == "predict_failed" and "died" in images.loc["2.png", "error"]
    assert (images.drop("2.png")["status"] == "ok").all() and len(images) == 10


@pytest.mark.usefixtures("ray_cluster")
def test_numbers_that_are_not_finite_cost_one_row(
    marked: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = segment_with(NotFinitePredictor, NOT_FINITE, marked, tiny_checkpoint, tmp_path / "run", monkeypatch)
    assert images.loc["2.png", "status"] == "predict_failed" and "not finite" in images.loc["2.png", "error"]
    assert (images.drop("2.png")["status"] == "ok").all()
