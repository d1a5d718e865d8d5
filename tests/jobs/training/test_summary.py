"""The summary page and the curves of a training that has been run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jobs.training.output import TrainingOutput
from jobs.training.summary import build_summary, write_summary
from pipeline.storage.files import Location
from tests.jobs.drawn_runs import call
from tests.jobs.training.small_trainings import train, train_config


def test_the_page_and_the_curves_show_what_was_measured(shapes: Path, tmp_path: Path):
    config = train_config(shapes, tmp_path, max_steps=2)
    train(config)
    output = TrainingOutput(str(tmp_path))
    write_summary(output, config, broken={"<b>7</b>": "there is no such file"})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "summary.html").read_text()
    (last,) = [row for row in output.read_metrics() if row["step"] == 2]
    assert f"{last['loss']:.4f}" in page and "&lt;b&gt;7&lt;/b&gt;" in page and "learning_rate: 0.01" in page
    assert list((tmp_path / "tensorboard").iterdir())


def pictures(page: str) -> list[dict[str, object]]:
    """The photos of a page, as its script has them."""
    data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(data[1])["pictures"] if data else []


def test_validation_photos_are_shown_with_truth_beside_prediction(shapes: Path, tmp_path: Path):
    config = train_config(shapes, tmp_path / "out", max_steps=2, validate_every_steps=2)
    train(config)
    output = TrainingOutput(str(tmp_path / "out"))
    page = build_summary(output, config)
    shown = pictures(page)
    assert len(shown) == len(json.loads((shapes / "val.json").read_text())["images"])
    assert all(picture["truth"] is not None and picture["found"] is not None for picture in shown)
    assert "Classes at the last validation" in page and "Validation photos" in page

    output.write_config({"broken": True})
    call("report", tmp_path / "out", f"output.uri={tmp_path / 'a.html'}")
    assert pictures((tmp_path / "a.html").read_text()) == [], "these are no settings, so that no set is known"


def test_a_validation_set_that_is_gone_is_said_and_the_page_is_written(shapes: Path, tmp_path: Path):
    config = train_config(shapes, tmp_path, max_steps=2, validate_every_steps=2)
    train(config)
    gone = config.data.model_copy(update={"val": Location(str(tmp_path / "gone.json")).uri})
    page = build_summary(TrainingOutput(str(tmp_path)), config.model_copy(update={"data": gone}))
    assert pictures(page) == [] and "cannot be shown: " in page and "gone.json" in page
