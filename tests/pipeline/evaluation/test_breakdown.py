"""Breakdowns: confusion matrix, sizes and slices add up to the figures of the whole; a slice is evaluated by itself."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.breakdown import BACKGROUND, confusion_matrix, size_figures, slice_images
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.run_detections import align
from tests.pipeline.evaluation.test_matching import matched


@pytest.fixture
def parts(drawn_run, frames):
    truth = Truth.load(drawn_run.truth)
    return truth, align(frames[0], frames[1], truth)[0]


def test_the_confusion_matrix_adds_up_to_the_figures(drawn_run, frames, parts):
    truth, table = parts
    matrix = confusion_matrix(
        truth, table, matched(truth, table, score_threshold=0.3), iou_type="segm", iou_threshold=0.5
    )
    instances, images = frames
    metrics = evaluate(instances, images, drawn_run.truth, score_threshold=0.3)
    names = [c.name for c in drawn_run.truth.categories]
    assert list(matrix.columns) == list(matrix.index) == [*names, BACKGROUND]
    assert np.trace(matrix.loc[names, names]) == metrics.overall("segm", "true_positives")
    assert matrix.loc[names].to_numpy().sum() == drawn_run.truth.num_instances
    assert matrix[names].to_numpy().sum() == (instances["score"] >= np.float32(0.3)).sum()
    assert (matrix.loc[names, names].to_numpy() - np.diag(np.diag(matrix.loc[names, names]))).sum() > 0
    assert matrix.loc[BACKGROUND, BACKGROUND] == 0


def test_detections_on_crowd_regions_are_in_no_cell(drawn_run, frames):
    content = copy.deepcopy(drawn_run.coco)
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    truth = Truth.from_coco(content)
    table = align(frames[0], None, truth)[0]
    matrix = confusion_matrix(truth, table, matched(truth, table), iou_type="segm", iou_threshold=0.5)
    assert matrix.drop(index=BACKGROUND).to_numpy().sum() == 0
    assert 0 < matrix.loc[BACKGROUND].sum() < len(frames[0])


def test_sizes_add_up(parts, drawn_run, frames):
    sizes = size_figures(parts[0], matched(parts[0], parts[1], score_threshold=0.5))
    instances, images = frames
    metrics = evaluate(instances, images, drawn_run.truth)
    assert sizes["objects"].sum() == drawn_run.truth.num_instances
    assert sizes["found"].sum() == metrics.overall("segm", "true_positives")


def test_slices_share_out_all_images(parts, frames):
    truth, _ = parts
    for by in ("crowding", "overlap", "height", "shard", "status", "exif_orientation"):
        slices = slice_images(truth, by, frames[1])
        listed = sorted(image for images in slices.values() for image in images)
        assert listed == sorted(truth.image_ids.tolist()), by
    assert set(slice_images(truth, "status", frames[1])) == {"ok", "corrupt"}
    with pytest.raises(ValueError, match="sliced by 'colour'; allowed are crowding, overlap, image_id"):
        slice_images(truth, "colour", frames[1])


def test_columns_of_many_values_become_few_slices(parts, frames):
    truth, images = parts[0], frames[1]
    assert set(slice_images(truth, "image_id", images)) == {"sub"}  # the folder
    many = images.assign(height=np.arange(len(images)), etag=[f"e{n}" for n in range(len(images))])
    many = pd.concat([many] * 5, ignore_index=True)
    many["image_id"] = [f"{n}.jpg" for n in range(40)]
    of_41 = Truth.from_coco({
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in range(41)],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    })  # fmt: skip
    assert set(slice_images(of_41, "height", many.assign(height=range(40)))) == {
        "0 to 9.75", "9.75 to 19.5", "19.5 to 29.25", "29.25 to 39", "not in the run",
    }  # fmt: skip
    by_etag = slice_images(of_41, "etag", many.assign(etag=[f"e{n}" for n in range(40)]))
    assert len(by_etag) == 31 and len(by_etag["others"]) == 11 and by_etag["not in the run"] == [40]


def test_a_slice_has_the_figures_of_a_run_of_its_images_alone(drawn_run, frames):
    instances, images = frames
    whole = evaluate(instances, images, drawn_run.truth, slices=["shard"])
    table = whole.slices["shard"]
    assert table.loc[0, "slice"] == "all" and table.loc[0, "AP"] == whole.overall("segm", "AP")
    shard = images["shard"].iloc[0]
    names = set(images.loc[images["shard"] == shard, "image_id"])
    content = drawn_run.coco
    ids = {image["id"] for image in content["images"] if image["file_name"] in names}
    alone = {
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in ids],
        "categories": content["categories"],
    }
    want = evaluate(instances[instances["image_id"].isin(names)], images[images["image_id"].isin(names)], alone)
    row = table.set_index("slice").loc[str(shard)]
    assert row["AP"] == want.overall("segm", "AP") and row["recall"] == want.overall("segm", "recall")
    assert table["objects"].iloc[1:].sum() == table["objects"].iloc[0]
