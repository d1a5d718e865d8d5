"""`maskfleet quantize` as a whole, on drawn shapes, and what uses its checkpoint: predict, segment, a training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch

from jobs.checkpoints import open_checkpoint, weights_hash
from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import bulk_job, prepare_segment
from jobs.terminal import Exit
from jobs.training import quantize
from jobs.training.history import ValidationFigures
from jobs.training.quantize import Quantized
from maskfleet import load_predictor
from model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.bulk.run import segment_corpus
from pipeline.bulk.verify import verify_run
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import open_run
from pipeline.tables import load_instances
from tests.jobs.drawn_runs import call

pytest.importorskip("nncf", reason="needs the extra quantize")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=4, num_val=3, num_unlabelled=1, seed=0)
    return folder


@pytest.fixture(scope="module")
def quantized(data: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint that the command has made, and what it printed. One of its photos cannot be read."""
    out, photos = tmp_path_factory.mktemp("quantized") / "model", tmp_path_factory.mktemp("photos") / "photos"
    shutil.copytree(data / "train", photos)
    (photos / "torn.png").write_bytes((photos / sorted(path.name for path in photos.iterdir())[0]).read_bytes()[:200])
    words = [f"model.checkpoint={tiny_checkpoint}", f"data.calibration={photos}", f"output.uri={out}"]
    return out, call("quantize", *words, f"data.val={data / 'val.json'}", "quantize.max_ap_drop=100")


def imitation(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint that says that it was quantised; what it holds for int8 is no network."""
    plain = load_checkpoint(checkpoint)
    parts = {"maps.xml": b"<net/>", "maps.bin": b""}
    save_checkpoint(folder, model=plain.build(), spec=plain.spec, categories=plain.categories, progress={}, int8=parts)
    return folder


def test_what_cannot_be_done_is_refused_before_anything_starts(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = [f"model.checkpoint={tiny_checkpoint}", f"data.calibration={data / 'train'}", f"output.uri={out}"]
    said = call("quantize", *words, f"data.val={data / 'val.json'}", "--dry-run")
    assert "4 photos to calibrate with are few" in said and "measure AP on 3 images" in said
    assert "what int8 costs in AP is not measured" in call("quantize", *words, "quantize.num_photos=2", "--dry-run")
    for word, sentence in (
        (f"data.calibration={tmp_path / 'none'}", "data.calibration: "),
        (f"output.uri={tiny_checkpoint}", "holds a checkpoint already; choose another place"),
        (f"model.checkpoint={tmp_path}", "holds no checkpoint"),
        (f"data.val={tmp_path / 'none.json'}", "none.json"),
    ):
        assert sentence in call("quantize", *words, word, code=Exit.BAD_INPUT), word
    monkeypatch.setattr("model.inference.openvino_engine.is_installed", lambda: False)
    assert "pip install 'maskfleet[quantize]'" in call("quantize", *words, code=Exit.BAD_INPUT)
    assert not out.exists()


def test_mode_int8_is_refused_where_it_cannot_compute(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = f"model.checkpoint={tiny_checkpoint}"
    imitated = f"model.checkpoint={imitation(tiny_checkpoint, tmp_path / 'imitation')}"
    out = f"output.uri={tmp_path / 'out'}"
    segment = ["segment", "segment.mode=int8", f"input.uri={data / 'val'}", out]
    predict = ["predict", data / "val", "predict.mode=int8", out]
    for line, words, sentence in (
        (segment, [plain], "mode int8: the checkpoint was not quantised"),
        (predict, [plain], "mode int8: the checkpoint was not quantised"),
        (segment, [imitated, "segment.gpus_per_worker=1"], "gpus_per_worker is 1.0; allowed in mode int8 is 0"),
        (segment, [imitated, "segment.engine=torch"], "engine is torch; allowed in mode int8"),
        (segment, [imitated, "segment.precision=float32"], "precision is float32; allowed in mode int8 is null"),
        (predict, [imitated, "predict.device=cuda"], "device is cuda; allowed in mode int8 is cpu"),
        (predict, [imitated, "predict.engine=torch"], "engine is torch; allowed in mode int8"),
    ):
        assert sentence in call(*line, *words, code=Exit.BAD_INPUT), words
    monkeypatch.setattr("model.inference.openvino_engine.is_installed", lambda: False)
    monkeypatch.setattr("jobs.segment.is_installed", lambda: False)
    for line in (segment, predict):
        assert "OpenVINO is not installed here" in call(*line, imitated, code=Exit.BAD_INPUT)
    assert not (tmp_path / "out").exists()


def test_parts_that_openvino_cannot_read_are_named(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = imitation(tiny_checkpoint, tmp_path / "imitation")
    words = [f"model.checkpoint={checkpoint}", "predict.mode=int8", f"output.uri={tmp_path / 'out'}"]
    assert "cannot read the checkpoint's parts for mode int8" in call("predict", data / "val", *words, code=Exit.FAILED)


def test_figures_are_shown_in_points() -> None:
    parts = {"box head": "int8", "mask head": "float32"}
    result = Quantized(parts, before={"bbox": 0.4, "segm": 0.3}, after={"bbox": 0.39, "segm": 0.31})
    assert round(result.drop, 6) == 1.0
    assert result.describe().splitlines() == [
        "int8: box head",
        "float32: mask head",
        "bbox AP: 40.00 in float32, 39.00 in int8 (-1.00)",
        "segm AP: 30.00 in float32, 31.00 in int8 (+1.00)",
    ]
    assert Quantized({}).drop == 0


@pytest.mark.long
def test_its_checkpoint_holds_the_float_weights_and_predicts_in_int8(
    quantized: tuple[Path, str], tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    folder, said = quantized
    assert "left out" in said and "torn.png" in said and "calibrated with 4 photos" in said
    assert "int8: backbone and RPN head, box head, mask head" in said
    assert "bbox AP: " in said and f"checkpoint -> {folder}" in said
    checkpoint, plain = open_checkpoint(folder), open_checkpoint(tiny_checkpoint)
    assert checkpoint.sha256 == weights_hash(str(folder)) != plain.sha256 == weights_hash(str(tiny_checkpoint))
    assert checkpoint.progress["int8_photos"] == 4 and "bbox_AP_in_int8" in checkpoint.progress
    for name, tensor in plain.state_dict.items():  # what a training from it begins with
        assert torch.equal(tensor, checkpoint.state_dict[name]), name
    predict = load_predictor(folder, mode="int8", score_threshold=0.05)
    photos = sorted((data / "val").iterdir())
    together, apart = predict(photos), pd.concat([predict(photo) for photo in photos], ignore_index=True)
    pd.testing.assert_frame_equal(together, apart)
    exact = load_predictor(tiny_checkpoint, engine="torch", score_threshold=0.05)(photos)
    assert 0.5 < len(together) / len(exact) < 2 and not together["score"].equals(exact["score"])
    pd.testing.assert_frame_equal(load_predictor(folder, engine="torch", score_threshold=0.05)(photos), exact)
    words = [f"model.checkpoint={folder}", "predict.mode=int8", "predict.score_threshold=0.05"]
    assert "3 photos" in call("predict", data / "val", *words, f"output.uri={tmp_path / 'out'}")
    words = [
        "segment.mode=int8",
        f"model.checkpoint={folder}",
        f"input.uri={data / 'val'}",
        f"output.uri={tmp_path / 'run'}",
    ]
    spec = prepare_segment(load_config(SegmentConfig, None, words)).spec
    assert (spec.segment.engine, spec.segment.precision, spec.decode.scaled) == ("openvino", "int8", False)
    assert spec.model.sha256 == checkpoint.sha256


@pytest.mark.long
def test_photos_none_of_which_can_be_read_are_bad_input(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"data.calibration={data / 'val.json'}"]
    said = call("quantize", *words, f"output.uri={tmp_path / 'out'}", code=Exit.BAD_INPUT)
    assert "data.calibration: 1 photo, and none that can be used; " in said and "val.json: unsupported_format" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("drops", "left", "code"),
    [
        ([0.02, 0.005], {"box"}, Exit.DONE),
        ([0.03, 0.02, 0.02, 0.002], {"box", "mask"}, Exit.DONE),
        ([0.03, 0.02, 0.02, 0.015], None, Exit.GATE),
    ],
)
def test_heads_are_left_in_float_where_int8_costs_too_much(
    drops: list[float],
    left: set[str] | None,
    code: Exit,
    quantized: tuple[Path, str],
    data: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The figures of the validations are given: those of a network with random weights say nothing."""
    figures = iter([0.5, *(0.5 - drop for drop in drops)])

    def measured(shares: object, truth: object) -> ValidationFigures:
        value = next(figures)
        return ValidationFigures({"bbox_AP": value, "segm_AP": value})

    monkeypatch.setattr(quantize, "evaluate_shares", measured)
    out = tmp_path / "model"
    words = [f"model.checkpoint={tiny_checkpoint}", f"data.calibration={data / 'train'}", f"output.uri={out}"]
    said = call("quantize", *words, f"data.val={data / 'val.json'}", code=code)
    assert next(figures, None) is None, "no more was tried than was needed"
    if left is None:
        assert "gate failed: int8 costs 1.50 points of AP; quantize.max_ap_drop allows 1" in said and not out.exists()
        return
    sizes, in_int8 = (
        {name.removesuffix(".bin"): len(file) for name, file in load_checkpoint(folder).int8.items() if ".bin" in name}
        for folder in (out, quantized[0])
    )
    assert {name for name in sizes if sizes[name] > 2 * in_int8[name]} == left


def rows_of(run: Path) -> pd.DataFrame:
    rows = load_instances(str(run)).drop(columns="run_id")
    return rows.sort_values(["image_id", "instance"], ignore_index=True)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_int8_gives_the_same_rows_whatever_its_batches_and_workers(
    quantized: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    folder, _ = quantized
    settings: list[Mapping[str, object]] = [
        {"batch_size": 1, "num_workers": [1, 1], "cpus_per_worker": 2},
        {"batch_size": 4, "num_workers": [2, 2], "cpus_per_worker": 1},
    ]
    runs = []
    for number, chosen in enumerate(settings):
        out = tmp_path / f"run-{number}"
        words = ["segment.mode=int8", f"model.checkpoint={folder}", f"input.uri={data}", f"output.uri={out}"]
        words += [f"segment.{name}={json.dumps(value)}" for name, value in chosen.items()]
        plan = prepare_segment(load_config(SegmentConfig, None, [*words, "corpus.shard_size=2", "input.pattern=*.png"]))
        segment_corpus(bulk_job(plan))
        assert list(verify_run(open_run(str(out)))) == []
        runs.append(rows_of(out))
    assert len(runs[0]) > 0
    pd.testing.assert_frame_equal(*runs)
    assert open_run(str(tmp_path / "run-0")).run_id == open_run(str(tmp_path / "run-1")).run_id
