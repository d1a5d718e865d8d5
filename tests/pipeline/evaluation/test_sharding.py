"""Shares of an evaluation: merged, they give the figures of the whole, bit for bit; each reads its own files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import Metrics, evaluate_run
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.sharding import measure_share, merge_shares, share_out
from pipeline.manifest import RunError, open_run

THRESHOLDS: dict[str, Any] = {"score_threshold": 0.3, "iou_threshold": 0.5}


def in_shares(uri: str, truth: Truth, num_shares: int, *, is_reversed: bool = False, also: Any = ()) -> Metrics:
    run = open_run(uri)
    shares = share_out(run, truth, num_shares)
    shares = shares[::-1] if is_reversed else shares
    settings = EvaluationSettings(also=also, **THRESHOLDS)
    measured = [measure_share(run, share, settings) for share in shares]
    return merge_shares(run, truth, shares, measured, settings)


def check_same(got: Metrics, want: Metrics) -> None:
    assert got.coverage == want.coverage and got.notes == want.notes
    for kind, result in want.coco.items():
        np.testing.assert_array_equal(got.coco[kind].stats, result.stats)
        np.testing.assert_array_equal(got.coco[kind].precision, result.precision)
        np.testing.assert_array_equal(got.coco[kind].recall, result.recall)
    pd.testing.assert_frame_equal(got.to_frame(), want.to_frame(), check_exact=True)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 7])
def test_shares_merge_to_the_figures_of_the_whole(drawn_run, num_shares):
    truth = Truth.load(drawn_run.truth)
    want = evaluate_run(drawn_run.uri, truth, **THRESHOLDS)
    assert 0 < want.overall("segm", "AP") < 1 and want.coverage.failed
    for is_reversed in (False, True):
        check_same(in_shares(drawn_run.uri, truth, num_shares, is_reversed=is_reversed), want)


def test_images_that_the_run_does_not_have_are_missed(drawn_run):
    content = drawn_run.coco
    content["images"].insert(2, {**content["images"][0], "id": 99, "file_name": "other.png"})
    content["annotations"].insert(0, {**content["annotations"][0], "id": 999, "image_id": 99})
    for entry in content["annotations"][::5]:
        entry["iscrowd"] = 1 - (entry["id"] == 999)
    truth = Truth.from_coco(content)
    want = evaluate_run(drawn_run.uri, truth, also=["confusion"], **THRESHOLDS)
    assert want.coverage.num_missing == 1
    got = in_shares(drawn_run.uri, truth, 2, also=("confusion",))
    check_same(got, want)
    pd.testing.assert_frame_equal(got.confusion, want.confusion)


def test_a_share_needs_its_own_files_and_no_others(drawn_run, tmp_path):
    folder = Path(shutil.copytree(drawn_run.uri, tmp_path / "run"))
    run = open_run(str(folder))
    first, *others = share_out(run, Truth.load(drawn_run.truth), 3)
    assert [len(share.files) for share in (first, *others)] == [1, 1, 1]
    assert sorted(i for share in (first, *others) for i in share.truth.image_ids.tolist()) == list(range(1, 9))
    for share in others:
        (folder / share.files[0].instances.key).unlink()
    measured = measure_share(run, first, EvaluationSettings(iou_types=("bbox",)))
    assert measured.coverage.num_images == len(first.truth.image_ids) and measured.coverage.num_instances > 0
    with pytest.raises(RunError, match="the file is missing"):
        measure_share(run, others[0], EvaluationSettings(iou_types=("bbox",)))


def test_odd_annotations_and_detections_are_noted_once_whatever_the_shares(drawn_run):
    content = drawn_run.coco
    for entry in content["annotations"][::4]:
        entry["segmentation"] = [[1, 1, 9, 9]]
    truth = Truth.from_coco(content)
    want = evaluate_run(drawn_run.uri, truth, max_detections=1, **THRESHOLDS)
    assert any("annotations are ignore regions" in note for note in want.notes)
    assert any("counts the best 1 detections" in note for note in want.notes)
    run = open_run(drawn_run.uri)
    settings = EvaluationSettings(max_detections=1, **THRESHOLDS)
    shares = share_out(run, truth, 3)
    check_same(merge_shares(run, truth, shares, [measure_share(run, s, settings) for s in shares], settings), want)
