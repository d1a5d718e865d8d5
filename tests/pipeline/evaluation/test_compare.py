"""Two runs compared: AP of resampled images as pycocotools gives it, the interval of the difference, the gates."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.coco import CocoMatches, match_coco
from pipeline.evaluation.compare import check_gates, compare
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.run_detections import align
from pipeline.masks.rle import encode_mask


@pytest.fixture
def better(drawn_run, frames) -> pd.DataFrame:
    """The run without its ghosts: what reaches no object."""
    instances, _ = frames
    return instances[instances["score"] > 0.45].reset_index(drop=True)


def crowded(drawn_run) -> dict:
    content = copy.deepcopy(drawn_run.coco)
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = int(index % 6 == 4)
    return content


def match_run(content: dict, instances: pd.DataFrame, iou_type: str) -> CocoMatches:
    truth = Truth.from_coco(content)
    table = align(instances, None, truth)[0]
    return match_coco(truth, table, find_overlaps(truth, table, iou_type))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_ap_of_all_images_is_cocos(drawn_run, frames, iou_type):
    content = crowded(drawn_run)
    got = match_run(content, frames[0], iou_type).average_precision()
    want = evaluate(frames[0], None, content, iou_types=[iou_type], backend="pycocotools")
    assert got[None] == pytest.approx(want.overall(iou_type, "AP"), abs=1e-12)
    for number, figures in want.coco[iou_type].by_category().items():
        assert got[number] == pytest.approx(figures["AP"], abs=1e-12)


def test_a_weight_equals_copies_of_the_image(drawn_run, frames):
    """Against pycocotools on a truth in which the images really are repeated."""
    content = crowded(drawn_run)
    weights = np.array([2, 0, 1, 3, 1, 0, 2, 1])
    repeated = {"categories": content["categories"], "images": [], "annotations": []}
    instances = []
    for image, weight in zip(content["images"], weights, strict=True):
        for copy_number in range(weight):
            new = {**image, "id": len(repeated["images"]) + 1, "file_name": f"{copy_number}/{image['file_name']}"}
            repeated["images"].append(new)
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"]:
                    number = len(repeated["annotations"]) + 1
                    repeated["annotations"].append({**entry, "id": number, "image_id": new["id"]})
            rows = frames[0][frames[0]["image_id"] == image["file_name"]]
            instances.append(rows.assign(image_id=new["file_name"]))
    want = evaluate(pd.concat(instances), None, repeated, iou_types=["segm"], backend="pycocotools")
    got = match_run(content, frames[0], "segm").average_precision(weights=weights)
    assert got[None] == pytest.approx(want.overall("segm", "AP"), abs=1e-12)


def test_a_run_compared_with_itself_does_not_differ(drawn_run, frames):
    same = compare(frames[0], frames[0], drawn_run.truth, num_resamples=20)
    assert same.difference == 0 and same.interval == (0, 0) and not same.is_significant
    assert (same.images["change"] == 0).all() and len(same.images) == 8


def test_without_an_interval_no_difference_is_called_significant(drawn_run, frames):
    worse = frames[0].iloc[:3]
    assert not compare(frames[0], worse, drawn_run.truth, num_resamples=0).is_significant


def test_a_worse_run_is_found_out_with_its_worst_images_first(drawn_run, frames):
    instances, images = frames
    name = instances["image_id"].mode().iloc[0]
    worse = instances[instances["image_id"] != name]
    got = compare(instances, worse, drawn_run.truth, images_a=images, images_b=images, num_resamples=100)
    assert got.difference < 0 and got.interval[0] < got.difference and got.interval[1] <= 0
    assert got.images.loc[0, "image"] == name
    again = compare(instances, worse, drawn_run.truth, num_resamples=100)
    assert again.interval == got.interval  # a pure function of the seed
    back = compare(worse, instances, drawn_run.truth, num_resamples=100)
    assert back.interval == pytest.approx((-got.interval[1], -got.interval[0]))
    assert got.by_category["difference"].is_monotonic_increasing
    with pytest.raises(ValueError, match="confidence is 95; it must be less than 1"):
        compare(instances, worse, drawn_run.truth, confidence=95)


def test_the_interval_covers_what_it_should(drawn_run, frames):
    """Chance alone: two runs that each lack a random 30 % of the detections are seldom called different."""
    instances, _ = frames
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(12):
        first, second = (instances[rng.random(len(instances)) < 0.7] for _ in range(2))
        verdicts.append(compare(first, second, drawn_run.truth, num_resamples=60).is_significant)
    assert sum(verdicts) <= 4


def test_images_that_one_run_lacks_are_named_and_left_out_unless_told_otherwise(drawn_run, frames):
    instances, images = frames
    lacking = images["image_id"].iloc[[1, 2]].tolist()
    fewer = images[~images["image_id"].isin(lacking)], instances[~instances["image_id"].isin(lacking)]
    tables = {"images_a": images, "images_b": fewer[0], "num_resamples": 0}
    got = compare(instances, fewer[1], drawn_run.truth, **tables)
    assert got.missing_a == () and got.missing_b == tuple(lacking)
    assert got.difference == 0 and len(got.images) == 6, "on the images of both the runs are equal"
    assert got.notes[0] == (
        f"run b lacks 2 of 8 images of the ground truth ({lacking[0]}, {lacking[1]}); only images that both runs have "
        "are compared"
    )
    everything = compare(instances, fewer[1], drawn_run.truth, only_common=False, **tables)
    assert everything.difference < 0 and len(everything.images) == 8
    assert "their objects count as missed" in everything.notes[0]
    others = images[images["image_id"].isin(lacking)]
    with pytest.raises(EvaluationError, match="no image of the ground truth in common"):
        compare(instances, instances, drawn_run.truth, images_a=others, images_b=fewer[0])


def test_gates_say_why(drawn_run, frames):
    instances, images = frames
    metrics = evaluate(instances, images, drawn_run.truth)
    ap = metrics.overall("segm", "AP")
    assert check_gates(metrics, min_ap=ap) == []
    assert check_gates(metrics, min_ap=0.99) == [f"segm AP is {ap:.4f}; gate.min_ap asks for 0.9900"]
    not_measured = evaluate(instances, images, {**drawn_run.coco, "annotations": []})
    assert check_gates(not_measured, min_ap=0.0) == ["segm AP cannot be measured; gate.min_ap asks for 0.0000"]
    worse = compare(instances, instances.iloc[::2], drawn_run.truth, num_resamples=0)
    assert np.isnan(worse.interval[0])
    assert check_gates(comparison=worse, max_drop=1.0) == []
    assert "AP fell from" in check_gates(comparison=worse, max_drop=0.0)[0]
    with pytest.raises(ValueError, match="max_drop needs a comparison"):
        check_gates(metrics, max_drop=0.1)


def test_masks_are_fitted_on_the_objects_that_the_boxes_of_both_runs_find(drawn_run, frames, monkeypatch):
    instances, images = frames
    fit = compare(instances, instances, drawn_run.truth, num_resamples=0).mask_fit
    assert fit is not None and fit.num_objects == fit.num_fitted > 0
    assert fit.iou[0] == fit.iou[1] > 0.5 and fit.boundary_iou[0] == fit.boundary_iou[1] > 0
    empty = [encode_mask(np.zeros(size, bool)) for size in zip(instances["image_height"], instances["image_width"])]
    without = compare(instances, instances.assign(rle_counts=empty), drawn_run.truth, num_resamples=0).mask_fit
    assert without is not None and without.num_objects == fit.num_objects, "boxes decide which objects are found"
    assert without.iou == (fit.iou[0], 0.0) and without.boundary_iou == (fit.boundary_iou[0], 0.0)
    monkeypatch.setattr("pipeline.evaluation.compare.MOST_FITTED", 3)
    drawn = compare(instances, instances, drawn_run.truth, num_resamples=0).mask_fit
    assert drawn is not None and (drawn.num_objects, drawn.num_fitted) == (fit.num_objects, 3)
    nothing = compare(instances, instances[:0], drawn_run.truth, images_b=images, num_resamples=0).mask_fit
    assert nothing is not None and nothing.num_objects == 0 and np.isnan(nothing.iou).all()
    assert compare(instances, instances, drawn_run.truth, num_resamples=0, iou_type="bbox").mask_fit is None
