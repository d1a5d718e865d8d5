"""`maskfleet evaluate` on small finished runs: figures, files, history, gates and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.terminal import Exit
from pipeline.results.history import load_history
from tests.jobs.drawn_runs import call, write_run
from tests.paths import ROOT


def test_evaluate_writes_figures_keeps_them_and_fails_its_gate(runs: Path, tmp_path: Path) -> None:
    truth = f"ground_truth.uri={runs / 'data' / 'val.json'}"
    history = f"history.uri={tmp_path / 'history'}"
    assert "AP" in call("evaluate", runs / "perfect", truth, history, "gate.min_ap=0.9")
    figures = json.loads((runs / "perfect.evaluation" / "metrics.json").read_text())
    assert figures["overall"]["segm"]["AP"] == pytest.approx(1.0)
    text = call("evaluate", runs / "worse", truth, history, "gate.min_ap=0.9", code=Exit.GATE)
    assert "gate.min_ap asks for 0.9" in text
    call("evaluate", runs / "perfect", truth, history)
    rows = load_history(str(tmp_path / "history"), iou_type="segm", metric="AP")
    overall = rows[rows["category"].isna()]["value"].tolist()
    assert overall == [figures["overall"]["segm"]["AP"], pytest.approx(0.5, abs=0.2)], "the third call adds nothing"


def test_the_same_evaluation_is_kept_once(runs: Path, tmp_path: Path) -> None:
    words = ["evaluate", runs / "worse", f"ground_truth.uri={runs / 'data' / 'val.json'}"]
    words += [f"history.uri={tmp_path / 'history'}"]
    for name in ("a", "b"):
        call(*words, f"output.uri={tmp_path / name}", f"history.label={name}")
    assert len(list((tmp_path / "history").glob("*.parquet"))) == 1
    call(*words, f"output.uri={tmp_path / 'c'}", "evaluate.score_threshold=0.3")
    assert len(list((tmp_path / "history").glob("*.parquet"))) == 2


@pytest.mark.parametrize("form", ["labelme", "voc"])
def test_ground_truth_of_other_formats_is_matched_by_class_name(runs: Path, tmp_path: Path, form: str) -> None:
    call("convert", runs / "data" / "val.json", tmp_path / form, f"convert.to={form}", "convert.overlap=smaller_on_top")
    figures = []
    for truth in (tmp_path / form, runs / "data" / "val.json"):
        call("evaluate", runs / "worse", f"ground_truth.uri={truth}", f"output.uri={tmp_path / 'out'}")
        figures.append(json.loads((tmp_path / "out" / "metrics.json").read_text())["by_category"]["segm"])
    for name in ("circle", "square", "triangle"):
        got, want = (figure[name] for figure in figures)
        assert got["true_positives"] == want["true_positives"] > 0
        assert 0 < got["recall"] == want["recall"] < 1
    words = ["compare", runs / "perfect", runs / "worse", "compare.num_resamples=0"]
    assert "segm AP" in call(*words, f"ground_truth.uri={tmp_path / form}")


def test_further_figures_slices_and_the_confusion_matrix_are_written(runs: Path, tmp_path: Path) -> None:
    words = ["evaluate", runs / "worse", f"ground_truth.uri={runs / 'data' / 'val.json'}", f"output.uri={tmp_path}"]
    everything = ROOT / "configs/evaluate/everything.yaml"
    text = call(*words, "--config", everything)
    assert all(word in text for word in ("VOC_AP_11point", "Cityscapes_AP50", "by crowding", "by status", "background"))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    for kind in ("bbox", "segm"):
        assert 0 < figures["overall"][kind]["VOC_AP"] < 1
    slices = pd.read_parquet(tmp_path / "slices.parquet")
    assert set(slices["by"]) == {"size", "crowding", "overlap", "status", "height"}
    confusion = pd.read_parquet(tmp_path / "confusion.parquet").set_index("truth")
    half = figures["overall"]["segm"]
    assert confusion["background"].sum() == half["false_negatives"] > 0
    assert figures["confusion"]["counts"] == confusion.to_numpy().tolist()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluate.also=[voc2]", "evaluate.also.0: 'voc2' is not allowed: input should be 'voc', 'cityscapes' or"),
        ("evaluate.slices=[weather]", "'weather' is not allowed"),
        ("evaluate.also=[cityscapes]", "must have 'segm'"),
        ("evaluate.num_shares=2 evaluate.also=[voc]", "evaluate.num_shares is 2; allowed is 1 with voc"),
        ("gate.min_ap=0.5", "gate.min_ap is 0.5 and looks at segm AP; evaluate.iou_types is ['bbox']"),
        ("gate.max_drop=0.1", "gate.max_drop is 0.1; evaluate measures one run and has none to fall behind"),
    ],
)
def test_figures_and_gates_that_cannot_be_computed_are_refused(
    runs: Path, tmp_path: Path, word: str, message: str
) -> None:
    truth = f"ground_truth.uri={runs / 'data' / 'val.json'}"
    words = ["evaluate", runs / "worse", truth, f"output.uri={tmp_path / 'out'}", "evaluate.iou_types=[bbox]"]
    words += word.split()
    assert message in " ".join(call(*words, code=Exit.BAD_INPUT).split())
    assert not (tmp_path / "out").exists()


def test_shares_measured_on_ray_give_the_same_files(runs: Path, tmp_path: Path, ray_cluster: None) -> None:
    write_run(runs / "data", tmp_path / "run", drop_every=3, shard_size=3)
    truth = f"ground_truth.uri={runs / 'data' / 'val.json'}"
    words = ["evaluate", tmp_path / "run", truth, "evaluate.also=[confusion]"]
    call(*words, f"output.uri={tmp_path / 'whole'}")
    call(*words, f"output.uri={tmp_path / 'shares'}", "evaluate.num_shares=3")
    for name in ("metrics.json", "metrics.parquet", "confusion.parquet"):
        assert (tmp_path / "shares" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_limits_and_classes_change_what_is_measured(runs: Path, tmp_path: Path) -> None:
    words = ["evaluate", runs / "perfect", f"ground_truth.uri={runs / 'data' / 'val.json'}", f"output.uri={tmp_path}"]
    text = call(*words, "evaluate.max_detections=1", "evaluate.classes=[circle,square]")
    assert "segm AP counts the best 1 detections" in " ".join(text.split())
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert set(figures["by_category"]["segm"]) == {"circle", "square"}
    assert figures["overall"]["segm"]["recall"] == 1 > figures["overall"]["segm"]["AP"]
    text = call(*words, "evaluate.classes=[hexagon]", code=Exit.BAD_INPUT)
    assert "classes has 'hexagon'; the ground truth has circle, square, triangle" in " ".join(text.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "have one file_name"),
        (lambda c: [image.update(file_name=f"x{image['id']}.png") for image in c["images"]], "no image in common"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]), "bbox[2] None"),
        (lambda c: [entry.update(segmentation=[]) for entry in c["annotations"]], "no annotation of the ground truth"),
        (lambda c: [category.update(name=category["name"] + "s") for category in c["categories"]], "do not agree"),
    ],
    ids=["one file twice", "other images", "null in a box", "no mask", "other names"],
)
def test_a_ground_truth_that_does_not_fit_is_refused_before_anything_is_measured(
    runs: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = json.loads((runs / "data" / "val.json").read_text())
    change(content)
    (tmp_path / "val.json").write_text(json.dumps(content))
    words = [runs / "perfect", f"ground_truth.uri={tmp_path / 'val.json'}", f"output.uri={tmp_path / 'out'}"]
    assert message in " ".join(call("evaluate", *words, code=Exit.BAD_INPUT).split())
    assert message in " ".join(call("compare", runs / "worse", *words, code=Exit.BAD_INPUT).split())
    assert not (tmp_path / "out").exists()
