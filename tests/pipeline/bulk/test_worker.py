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
from tests.pipeline.bulk.segmenting import config_of, predictor_config
from tests.pipeline.predictors.user_code.faulty_marks import mark_of
from tests.pipeline.predictors.written import FAULTY, USER_CODE, write_code

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
def test_faults_of_a_predictor_of_the_users_own_cost_one_row_each(ten_photos: Path, tmp_path: Path) -> None:
    reasons = {
        "raises": "KeyError: 'no such thing'",
        "exits": "SystemExit: bye",
        "no memory": "OutOfMemoryError: CUDA out of memory",
        "nan": "scores has a value that is not finite",
        "label": "labels has a value of 3; 1..2 is wanted",
        "one too few": "it gave a list of 0 for 1 images; a list of as many is wanted",
        "hangs": "it took longer than 10 s",
        "dies": "the worker that touched it died, more than once",
    }
    for number, fault in enumerate(reasons):
        pixels = np.array(Image.open(ten_photos / f"{number}.png"))
        pixels[0, 0] = mark_of(fault)
        Image.fromarray(pixels).save(ten_photos / f"{number}.png")
    words = ("corpus.shard_size=5", "segment.predictor_timeout_s=10")
    plan = prepare_segment(predictor_config(FAULTY, USER_CODE, ten_photos, tmp_path / "run", *words))
    totals = segment_corpus(bulk_job(plan))
    assert totals.statuses == {"ok": 2, "predict_failed": 8} and totals.num_instances == 2
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []
    images = pd.read_parquet(tmp_path / "run/images").set_index("image_id")["error"]
    assert {fault: images[f"{number}.png"] for number, fault in enumerate(reasons)} == reasons
    pixels = np.array(Image.open(ten_photos / "9.png"))
    pixels[0, 0] = mark_of("the run's")
    Image.fromarray(pixels).save(ten_photos / "9.png")
    with pytest.raises(RunError, match=f"the service does not answer{GO_ON}"):
        plan = prepare_segment(predictor_config(FAULTY, USER_CODE, ten_photos, tmp_path / "ended", *words))
        segment_corpus(bulk_job(plan))


@pytest.mark.long
def test_a_predictor_that_cannot_load_ends_the_run_in_one_sentence(ten_photos: Path, tmp_path: Path) -> None:
    text = """
        from maskfleet import Category
        class Mine:
            categories = [Category(1, "a")]
            def load(self, device): raise OSError("weights.pt is not here")
            def predict(self, images): ...
    """
    code = write_code(tmp_path / "code", mine=text)
    plan = prepare_segment(predictor_config("mine:Mine", code, ten_photos, tmp_path / "run"))
    reason = r"segment\.predictor: mine:Mine cannot load: OSError: weights\.pt is not here"
    with pytest.raises(RunError, match=f"{reason}{GO_ON}"):
        segment_corpus(bulk_job(plan))


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
    with pytest.raises(RunError, match=f"segment.engine: openvino is not installed on this machine; .*{GO_ON}"):
        segment_corpus(dataclasses.replace(job, predictor=NoOpenVinoPredictor))
    assert segment_corpus(job).statuses == {"ok": 10}
