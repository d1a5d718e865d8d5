"""The settings of the commands after a run: which evaluations can be measured together."""

from __future__ import annotations

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.results import CompareConfig, ConvertConfig, EvaluateConfig, ExportConfig, HistoryConfig
from pipeline.results import FIGURES


def evaluate_config(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, None, ["run.uri=r", "ground_truth.uri=g", *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["evaluate.also=[cityscapes]", "evaluate.iou_types=[bbox]"],
            "iou_types is ['bbox'] and must have 'segm'",
        ),
        (["evaluate.slices=[size]", "evaluate.iou_types=[keypoints]"], "must have 'bbox' or 'segm'"),
        (["evaluate.also=[confusion]", "evaluate.iou_types=[keypoints]"], "must have 'bbox' or 'segm'"),
        (["evaluate.num_shares=2", "evaluate.also=[voc]"], "evaluate.num_shares is 2; allowed is 1 with voc"),
        (
            ["evaluate.num_shares=2", "evaluate.slices=[size]"],
            "num_shares is 2; allowed is 1 with slices size",
        ),
        (["evaluate.num_shares=2", "evaluate.backend=pycocotools"], "allowed is 1 with backend pycocotools"),
        (["evaluate.slices=[colour]"], "evaluate.slices.0: 'colour' is not allowed"),
        (["evaluate.iou_types=[]"], "evaluate.iou_types"),
    ],
)
def test_evaluations_that_cannot_be_measured_together_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_config(*words)
    assert sentence in str(caught.value)


def test_shares_may_measure_a_confusion_matrix_and_slices_may_be_any_column_of_images() -> None:
    config = evaluate_config("evaluate.num_shares=2", "evaluate.also=[confusion]")
    assert config.evaluate.num_shares == 2
    assert evaluate_config("evaluate.slices=[size, status]").evaluate.slices == ("size", "status")


@pytest.mark.parametrize("word", ["gate.min_ap=1.1", "gate.max_drop=-0.1", "evaluate.iou_threshold=0"])
def test_fractions_outside_their_range_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        evaluate_config(word)


def test_defaults_are_those_of_the_results_themselves() -> None:
    assert load_config(HistoryConfig, None, ["history.uri=h"]).history.figures == FIGURES
    compare = load_config(CompareConfig, None, ["run_a.uri=a", "run_b.uri=b"])
    assert compare.ground_truth.uri is None and compare.output.uri is None


@pytest.mark.parametrize(
    ("kind", "words", "key"),
    [
        (ExportConfig, ["run.uri=r", "export.to=pascal"], "export.to"),
        (ConvertConfig, ["data.uri=d", "output.uri=o", "convert.to=pascal"], "convert.to"),
        (ConvertConfig, ["data.uri=d", "output.uri=o", "data.format=pascal"], "data.format"),
    ],
)
def test_a_format_that_is_not_known_is_refused_with_those_that_are(kind: type, words: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: 'pascal' is not allowed: input should be .*'coco'"):
        load_config(kind, None, words)
