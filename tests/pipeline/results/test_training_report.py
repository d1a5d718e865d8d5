"""What a page says of a training: curves and a table of the classes."""

from __future__ import annotations

import re

import pandas as pd

from pipeline.results.report import build_report
from pipeline.results.training_report import TrainingRecord, training_parts


def classes(num: int, steps: tuple[int, ...] = (10, 20)) -> pd.DataFrame:
    """Class k ends with an AP of k / 100."""
    rows = [
        {"step": step, "category": f"class {k}", "segm_AP": k / 100 * step / 20, "bbox_AP": float("nan")}
        for step in steps
        for k in range(num)
    ]
    return pd.DataFrame(rows)


def test_the_curves_are_those_of_losses_ap_rate_and_speed() -> None:
    metrics = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "loss_mask": [1.0, 0.5], "segm_AP": [None, 0.5]})
    metrics = metrics.assign(learning_rate=[0.1, 0.1], images_per_s=[3.0, 4.0], peak_memory_bytes=[1, 1])
    charts = training_parts(TrainingRecord(metrics))["charts"]
    assert isinstance(charts, list) and len(charts) == 4
    assert [len(re.findall("<polyline", chart)) for chart in charts] == [2, 1, 1, 1]


def test_each_class_has_a_curve_and_a_row_of_the_last_validation() -> None:
    parts = training_parts(TrainingRecord(pd.DataFrame({"step": [1], "loss": [1.0]}), classes(2)))
    assert parts["figures"] == ["segm_AP", "bbox_AP"]
    assert parts["classes"] == [("class 0", ["0.000", "-"]), ("class 1", ["0.010", "-"])]
    charts = parts["charts"]
    assert isinstance(charts, list) and "segm AP of each class" in charts[-1] and "class 1" in charts[-1]


def test_of_many_classes_the_lowest_have_curves() -> None:
    parts = training_parts(TrainingRecord(pd.DataFrame({"step": [1]}), classes(30)))
    charts = parts["charts"]
    assert isinstance(charts, list) and "of the 12 lowest of 30 classes" in charts[-1]
    assert "class 11<" in charts[-1] and "class 12<" not in charts[-1]
    assert len(str(parts["classes"])) > 30


def test_names_and_settings_are_escaped() -> None:
    record = TrainingRecord(
        pd.DataFrame({"step": [1], "loss": [1.0]}),
        facts={"output": "<i>out</i>"},
        unusable={"<b>7</b>": "<u>torn</u>"},
        settings="a: <s>b</s>",
    )
    html = build_report(training=record)
    for tag in ("<i>out", "<b>7", "<u>torn", "<s>b"):
        assert tag not in html and tag.replace("<", "&lt;").replace(">", "&gt;") in html
