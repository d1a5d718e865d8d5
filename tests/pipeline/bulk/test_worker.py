"""Actors of a bulk run on a real Ray: images that kill them or break the network, and workers that cannot start."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image

from jobs.segment import bulk_job, prepare_segment
from jobs.terminal import Exit, run_or_fail
from pipeline.bulk.predict import ImagePredictor
from pipeline.bulk.run import segment_corpus
from pipeline.bulk.verify import verify_run
from pipeline.manifest import RunError, open_run
from tests.pipeline.bulk.faulty_predictors import (
    DEADLY,
    NOT_FINITE,
    ChildlessPredictor,
    DeadlyPredictor,
    DyingPredictor,
    NoOpenVinoPredictor,
    NotFinitePredictor,
    UnreadablePredictor,
)
from tests.pipeline.bulk.segmenting import config_of

pytestmark = pytest.mark.usefixtures("ray_cluster")
GO_ON = r"\. The run has stopped; the same command goes on with it"


@pytest.fixture
def ten_photos(photos: Path, tmp_path: Path) -> Path:
    """A folder of ten photos, none of whose first pixels is a mark of the faulty predictors."""
    folder = tmp_path / "ten"
    folder.mkdir()
    for i, source in enumerate(sorted(photos.rglob("roll-*/*.png"))[:10]):
        pixels = np.array(Image.open(source))
        pixels[0, 0] = (1, 2, 3)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def segment_with(
    predictor: type[ImagePredictor], mark: tuple[int, int, int], ten_photos: Path, checkpoint: Path, out: Path
) -> pd.DataFrame:
    """Marks the third photo, segments all ten with a faulty predictor; returns the images table by image id."""
    pixels = np.array(Image.open(ten_photos / "2.png"))
    pixels[0, 0] = mark
    Image.fromarray(pixels).save(ten_photos / "2.png")
    plan = prepare_segment(config_of(checkpoint, ten_photos, out, "corpus.shard_size=5"))
    segment_corpus(dataclasses.replace(bulk_job(plan), predictor=predictor))
    assert list(verify_run(open_run(str(out)))) == []
    return pd.read_parquet(out / "images").set_index("image_id")


@pytest.mark.long
def test_an_image_that_kills_its_worker_costs_one_row(ten_photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = segment_with(DeadlyPredictor, DEADLY, ten_photos, tiny_checkpoint, tmp_path / "run")
    assert images.loc["2.png", "status"] == "predict_failed" and "died" in images.loc["2.png", "error"]
    assert (images.drop("2.png")["status"] == "ok").all() and len(images) == 10


@pytest.mark.long
def test_numbers_that_are_not_finite_cost_one_row(ten_photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = segment_with(NotFinitePredictor, NOT_FINITE, ten_photos, tiny_checkpoint, tmp_path / "run")
    assert images.loc["2.png", "status"] == "predict_failed" and "not finite" in images.loc["2.png", "error"]
    assert (images.drop("2.png")["status"] == "ok").all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("predictor", "reason"),
    [
        (DyingPredictor, f"a worker died in 5 starts in a row, before it was ready: .*{GO_ON}"),
        (UnreadablePredictor, "OSError: the weights cannot be read"),
        (ChildlessPredictor, f"a decode child did not start: the decoder ended with exit code 1{GO_ON}"),
    ],
)
def test_workers_that_cannot_start_end_the_run_in_one_sentence(
    predictor: type[ImagePredictor],
    reason: str,
    ten_photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = prepare_segment(config_of(tiny_checkpoint, ten_photos, tmp_path / "run"))
    job, began_s = bulk_job(plan), time.monotonic()
    with pytest.raises(typer.Exit) as ended:
        run_or_fail(lambda: segment_corpus(dataclasses.replace(job, predictor=predictor)))
    assert ended.value.exit_code == Exit.FAILED and time.monotonic() - began_s < 120
    assert re.fullmatch(f"maskfleet: {reason}", capsys.readouterr().err.splitlines()[-1])
    assert segment_corpus(job).statuses == {"ok": 10}


@pytest.mark.long
def test_a_worker_without_the_runs_engine_ends_the_run_in_one_sentence(
    ten_photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
    plan = prepare_segment(config_of(tiny_checkpoint, ten_photos, tmp_path / "run", "segment.engine=openvino"))
    job = bulk_job(plan)
    with pytest.raises(RunError, match=f"OpenVINO is not installed on this machine; .*{GO_ON}"):
        segment_corpus(dataclasses.replace(job, predictor=NoOpenVinoPredictor))
    assert segment_corpus(job).statuses == {"ok": 10}
