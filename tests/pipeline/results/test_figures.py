"""Figures on the page are those of the evaluation; of a large confusion matrix the confused pairs are listed."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics import MetricsJson, evaluate_run
from pipeline.results.figures import evaluation_parts, shown, side_by_side
from pipeline.results.report import build_report
from pipeline.results.training_report import TrainingRecord


def test_of_many_classes_the_confused_pairs_are_listed():
    names = [f"c{n}" for n in range(30)] + ["background"]
    counts = np.diag(np.full(31, 50))
    counts[3, 4], counts[7, 2], counts[5, 30] = 9, 2, 40
    evaluation: MetricsJson = {"confusion": {"names": names, "counts": counts.tolist()}}
    html = build_report(training=TrainingRecord(pd.DataFrame({"step": [1], "loss": [1.0]})), evaluation=evaluation)
    pairs = re.findall(r'<td>(c\d+)</td><td class="text">(c\d+)</td><td>(\d+)</td><td>(\d+)</td>', html)
    assert pairs == [("c3", "c4", "9", "59"), ("c7", "c2", "2", "52")]


def test_two_evaluations_stand_side_by_side(drawn_run):
    evaluations = [
        evaluate_run(drawn_run.uri, drawn_run.truth, score_threshold=score).to_dict() for score in (0.3, 0.8)
    ]
    joined = side_by_side(*evaluations)
    assert list(joined["overall"]) == ["bbox A", "bbox B", "segm A", "segm B"]
    html = build_report(drawn_run.uri, evaluation=joined)
    assert "<th>bbox A</th><th>bbox B</th><th>segm A</th><th>segm B</th>" in html
    cells = "".join(
        f"<td>{each['overall'][kind]['recall']:.3f}</td>" for kind in ("bbox", "segm") for each in evaluations
    )
    assert f"<td>recall</td>{cells}" in html
    assert "A and B were evaluated at different thresholds; those below are of A" in html
    assert side_by_side(evaluations[0], {})["overall"].keys() == {"bbox A", "segm A"}
    only_second = side_by_side({}, evaluations[1])
    assert only_second["overall"].keys() == {"bbox B", "segm B"} and only_second["score_threshold"] == 0.8


def test_what_is_not_measured_is_a_dash():
    assert [shown("AP", value) for value in (None, float("nan"), 0.5)] == ["-", "-", "0.500"]
    assert shown("false_positives", 1234.0) == "1,234"
    assert evaluation_parts({"overall": {}})["rows"] == []
