"""`maskfleet predict` and `load_predictor`: photos by path, folder and pattern; pictures and tables; faults by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskfleet
from jobs.cli import app
from jobs.config.predict import PredictConfig, find_photos
from jobs.predict import prepare_predict, run_predict
from jobs.terminal import Exit
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA

NOISE = np.random.default_rng(5).integers(0, 256, (3, 64, 96, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name, pixels in zip(("a.png", "sub/a.png", "sub/b.png"), NOISE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def config_of(checkpoint: Path, *words: str | Path, output: Path, **predict: object) -> PredictConfig:
    return PredictConfig.model_validate(
        {
            "model": {"checkpoint": str(checkpoint)},
            "input": {"photos": [str(word) for word in words]},
            "output": {"uri": str(output)},
            "predict": {"score_threshold": 0.05, **predict},
        }
    )


def test_pictures_and_tables_are_written_and_no_picture_takes_anothers_name(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = config_of(tiny_checkpoint, photos, photos / "a.png", output=out)
    plan = prepare_predict(config, find_photos(config))
    assert len(plan.photos) == 3, "a photo that is named twice is predicted once"
    calls: list[tuple[int, int]] = []
    prediction = run_predict(plan, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)] and prediction.num_failed == 0
    names = ["a.png", "a_2.png", "b.png", "images.parquet", "instances.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    images, instances = (pd.read_parquet(out / f"{name}.parquet") for name in ("images", "instances"))
    assert list(images.columns) == IMAGES_SCHEMA.names and list(instances.columns) == INSTANCES_SCHEMA.names
    assert list(images["image_id"]) == list(plan.photos) and len(instances) == len(prediction.instances) > 0
    with Image.open(out / "b.png") as drawn:
        assert drawn.size == (96, 64) and not np.array_equal(np.asarray(drawn), NOISE[2])


def test_a_class_can_have_a_score_threshold_of_its_own(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    def found(**predict: object) -> pd.Series:
        config = config_of(tiny_checkpoint, photos, output=tmp_path / "out", **predict)
        return run_predict(prepare_predict(config, find_photos(config))).instances["category"].value_counts()

    all_classes = found()
    name = all_classes.index[0]
    (tmp_path / "thresholds.json").write_text(json.dumps({"score_thresholds": {name: 1.0}}))
    for thresholds in ({name: 1.0}, str(tmp_path / "thresholds.json")):
        assert found(score_thresholds=thresholds).to_dict() == all_classes.drop(name).to_dict()
    with pytest.raises(ValueError, match=r"score_thresholds: the model has no class 'x'; allowed are "):
        found(score_thresholds={"x": 0.5})


def test_the_command_prints_a_table_and_names_the_photo_it_cannot_use(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    words = [str(photos / "a.png"), f"model.checkpoint={tiny_checkpoint}", f"output.uri={tmp_path / 'out'}"]
    result = CliRunner().invoke(app, ["predict", *words, "predict.score_threshold=0.05"])
    assert result.exit_code == Exit.DONE, result.output
    assert "a.png" in result.stdout and "96 x 64" in result.stdout and "1 photo," in result.stdout
    result = CliRunner().invoke(app, ["predict", str(photos / "notes.txt"), *words])
    assert result.exit_code == Exit.TOO_MANY_FAILED
    assert "unsupported_format" in result.stdout and "1 photo could not be used" in result.stdout


def test_no_photo_is_refused_before_the_model_is_loaded() -> None:
    result = CliRunner().invoke(app, ["predict", "model.checkpoint=/no/model"])
    assert result.exit_code == Exit.BAD_INPUT and "input.photos: missing" in result.stderr
    result = CliRunner().invoke(app, ["predict", "/no/photo.jpg", "model.checkpoint=/no/model"])
    assert result.exit_code == Exit.BAD_INPUT and "/no/photo.jpg" in result.stderr


def test_an_engine_that_cannot_compute_here_is_refused_before_the_model_is_loaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(photos), "model.checkpoint=/no/model", f"output.uri={tmp_path / 'out'}", "predict.engine=openvino"]
    result = CliRunner().invoke(app, ["predict", *words, "predict.device=cuda"])
    assert result.exit_code == Exit.BAD_INPUT and "predict.engine: openvino computes on CPUs only" in result.stderr
    monkeypatch.setattr("model.inference.openvino_engine.is_installed", lambda: False)
    result = CliRunner().invoke(app, ["predict", *words, "predict.device=cpu"])
    assert result.exit_code == Exit.BAD_INPUT and "predict.engine: openvino is not installed" in result.stderr


def test_a_missing_model_is_named(photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(photos), "model.checkpoint=/no/model", f"output.uri={tmp_path / 'out'}"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == Exit.BAD_INPUT and "/no/model does not exist" in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_five_lines_of_python(tiny_checkpoint: Path, photos: Path) -> None:
    predictor = maskfleet.load_predictor(tiny_checkpoint, score_threshold=0.05)
    found = predictor(photos / "a.png")
    assert list(found.columns) == INSTANCES_SCHEMA.names and len(found)
    picture = maskfleet.overlay(photos / "a.png", found)
    assert isinstance(picture, Image.Image) and picture.size == (96, 64)
    assert getattr(picture, "_repr_png_")().startswith(b"\x89PNG"), "what a notebook shows of a value"  # noqa: B009
    both = predictor([photos / "a.png", photos / "sub/b.png"])
    alone = both[both["image_id"] == str(photos / "a.png")]
    assert maskfleet.overlay(photos / "a.png", both).tobytes() == maskfleet.overlay(photos / "a.png", alone).tobytes()


@pytest.mark.long
def test_the_whole_command_needs_no_ray(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from jobs.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'ray' not in sys.modules, 'Ray was imported'"
    )
    words = ["predict", str(photos / "a.png"), f"model.checkpoint={tiny_checkpoint}", f"output.uri={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
