"""A run's instances as detections on the truth's images, and the counts of what is left out of the figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.run_detections import align, check_categories, match_images
from pipeline.manifest import open_run
from pipeline.tables import load_table


def truth_of(*file_names: str) -> Truth:
    images = [{"id": n, "file_name": name, "height": 9, "width": 9} for n, name in enumerate(file_names)]
    return Truth.from_coco({"images": images, "annotations": [], "categories": []})


def test_a_class_means_the_same_on_both_sides():
    check_categories({1: "cat", 9: "horse"}, {1: "cat", 2: "dog"})
    with pytest.raises(EvaluationError, match="1 is 'dog' in the run and 'cat' in the ground truth"):
        check_categories({1: "dog"}, {1: "cat"})
    with pytest.raises(EvaluationError, match="'cat' is 5 in the run and 1 in the ground truth"):
        check_categories({5: "cat"}, {1: "cat"})


@pytest.mark.parametrize(
    ("keys", "names", "want"),
    [
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"], {"a/1.jpg": 0, "b/1.jpg": 1}),
        (["deep/a/1.jpg", "2.jpg"], ["1.jpg", "val/2.jpg"], {"deep/a/1.jpg": 0, "2.jpg": 1}),
        (["x/1.jpg", "1.jpg"], ["1.jpg"], {"1.jpg": 0}),  # the whole name wins, the other is simply not in the truth
        (["a/1.jpg", "b/1.jpg", "c\\1.jpg"], ["b\\1.jpg", "a\\1.jpg"], {"a/1.jpg": 1, "b/1.jpg": 0}),
        (["c\\1.jpg", "c/1.jpg"], ["c\\1.jpg"], {"c\\1.jpg": 0}),
        ([], ["1.jpg"], {}),
    ],
)
def test_images_are_matched_whole_first_then_by_base_name(keys, names, want):
    assert match_images(keys, truth_of(*names)).truth_id == want


@pytest.mark.parametrize(
    ("keys", "names", "message"),
    [
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "'1.jpg' is 'a/1.jpg', 'b/1.jpg' in the run"),
        (["1.jpg"], ["a/1.jpg", "b/1.jpg"], "'a/1.jpg', 'b/1.jpg' in the ground truth"),
        (["1.jpg"], ["2.jpg"], "no image in common"),
    ],
)
def test_a_base_name_of_several_images_is_an_error_that_lists_them(keys, names, message):
    with pytest.raises(EvaluationError, match=message):
        match_images(keys, truth_of(*names))


def test_an_image_that_stands_twice_in_a_run_is_refused_with_both_its_places(drawn_run, frames):
    instances, images = frames
    twice = pd.concat([images, images.iloc[[2]].assign(uri="elsewhere/photo.png")])
    with pytest.raises(EvaluationError, match=r"'sub/photo_2.png' stands 2 times .* and 'elsewhere/photo.png'"):
        evaluate(instances, twice, drawn_run.truth)


def test_a_run_without_a_detection_needs_no_types(drawn_run):
    content = drawn_run.coco
    content["images"][0]["labelled_category_ids"] = [20]
    columns = ["image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2"]
    metrics = evaluate(pd.DataFrame(columns=columns), None, content, iou_types=["bbox"])
    assert metrics.overall("bbox", "AP") == 0 and metrics.coverage.num_instances == 0


def test_masks_of_another_size_find_nothing_and_are_counted(drawn_run, frames):
    instances, images = frames
    name = instances["image_id"].iloc[0]
    turned = instances["image_id"] == name
    swapped = instances.copy()
    swapped.loc[turned, ["image_height", "image_width"]] = swapped.loc[
        turned, ["image_width", "image_height"]
    ].to_numpy()
    metrics = evaluate(swapped, images, drawn_run.truth, iou_types=["segm"])
    assert metrics.coverage.num_other_size == turned.sum()
    assert any("another size" in note for note in metrics.notes)
    assert metrics.overall("segm", "AP") < evaluate(instances, images, drawn_run.truth).overall("segm", "AP")


def test_categories_are_matched_by_id_and_checked_by_name(drawn_run, frames):
    instances, images = frames
    renamed = instances.assign(category=instances["category"].replace("circle", "ball"))
    with pytest.raises(EvaluationError, match="10 is 'ball' in the run and 'circle' in the ground truth"):
        evaluate(renamed, images, drawn_run.truth)
    moved = instances.assign(category_id=instances["category_id"].replace(10, 11))
    with pytest.raises(EvaluationError, match="'circle' is 11 in the run and 10"):
        evaluate(moved, images, drawn_run.truth)
    fourth = instances.iloc[[0]].assign(category_id=40, category="star")
    metrics = evaluate(pd.concat([instances, fourth]), images, drawn_run.truth)
    assert metrics.coverage.num_other_category == 1
    assert metrics.overall("segm", "AP") == evaluate(instances, images, drawn_run.truth).overall("segm", "AP")


def test_classes_not_labelled_on_an_image_are_not_punished(drawn_run, frames):
    instances, images = frames
    content = drawn_run.coco
    content["images"][0]["labelled_category_ids"] = [20, 30]
    circles = [a for a in content["annotations"] if a["image_id"] == 1 and a["category_id"] == 10]
    assert circles, "the image has objects of the class that was not looked for"
    name = content["images"][0]["file_name"]
    extra = instances.iloc[[0]].assign(image_id=name, category_id=10, category="circle", score=np.float32(0.99))
    extra[["image_height", "image_width"]] = [content["images"][0]["height"], content["images"][0]["width"]]
    metrics = evaluate(pd.concat([instances, extra]), images, content, iou_types=["bbox"])
    without = instances[~((instances["image_id"] == name) & (instances["category_id"] == 10))]
    assert metrics.coverage.num_not_labelled == len(instances) - len(without) + 1
    assert metrics.coverage.num_truths_not_labelled == len(circles)
    assert any(note.startswith(f"{len(circles)} objects and ") for note in metrics.notes)
    # Neither the objects nor the detections count, so it is as if neither were there.
    plain = drawn_run.coco
    plain["annotations"] = [a for a in plain["annotations"] if a not in circles]
    want = evaluate(without, images, plain, iou_types=["bbox"])
    assert metrics.at_threshold == want.at_threshold
    np.testing.assert_array_equal(metrics.coco["bbox"].stats, want.coco["bbox"].stats)


def test_boxes_become_xywh_and_rows_keep_their_order(drawn_run, frames):
    instances, images = frames
    instances = instances.iloc[::-1]
    table, coverage = align(instances, images, Truth.load(drawn_run.truth), keypoints=True)
    assert coverage.num_instances == len(table) == len(instances)
    ids = {image["file_name"]: image["id"] for image in drawn_run.coco["images"]}
    assert table.image_ids.tolist() == instances["image_id"].map(ids).tolist()
    assert table.category_ids.tolist() == instances["category_id"].tolist()
    assert table.scores.tolist() == instances["score"].astype(float).tolist()
    x1, y1, x2, y2 = (instances[name].to_numpy(np.float64) for name in ("x1", "y1", "x2", "y2"))
    np.testing.assert_array_equal(table.bboxes, np.stack([x1, y1, x2 - x1, y2 - y1], axis=1))
    assert [rle["counts"] for rle in table.to_rles()] == instances["rle_counts"].tolist()
    assert table.keypoints is not None and list(table.keypoints) == [None] * len(instances)


def test_an_arrow_table_gives_what_a_frame_gives(drawn_run, frames):
    truth = Truth.load(drawn_run.truth)
    want, _ = align(frames[0], None, truth)
    got, coverage = align(load_table("instances", open_run(drawn_run.uri), frames[0].columns.tolist()), None, truth)
    for name in ("image_ids", "category_ids", "scores", "bboxes", "sizes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert got.to_rles() == want.to_rles()
    assert coverage.num_ok == 8 and coverage.num_missing == 0  # without an images table all count as segmented


def test_images_that_only_one_side_has_are_counted(drawn_run, frames):
    instances, images = frames
    content = drawn_run.coco
    of_first = [entry for entry in content["annotations"] if entry["image_id"] == 1]
    lost = content["images"].pop(0)["file_name"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]
    content["images"].append({**content["images"][0], "id": 99, "file_name": "elsewhere.png"})
    content["annotations"] += [{**entry, "id": 500 + entry["id"], "image_id": 99} for entry in of_first]
    table, coverage = align(instances, images, Truth.from_coco(content))
    assert (coverage.num_images, coverage.num_ok, coverage.failed) == (8, 6, {"corrupt": 1})
    assert coverage.num_missing == 1 and coverage.num_extra_images == 1
    assert len(table) == coverage.num_instances == (instances["image_id"] != lost).sum() < len(instances)
    on_corrupt = sum(entry["image_id"] == 8 for entry in content["annotations"])
    assert coverage.num_truths == len(content["annotations"])
    assert coverage.num_truths_lost == len(of_first) + on_corrupt


def test_instances_that_cannot_be_read_as_detections_are_refused(drawn_run, frames):
    instances, images = frames
    truth = Truth.load(drawn_run.truth)
    with pytest.raises(ValueError, match="lack the column 'rle_counts'"):
        align(instances.drop(columns="rle_counts"), images, truth)
    assert align(instances.drop(columns="rle_counts"), images, truth, masks=False)[0].counts is None
    two_names = instances.assign(category_id=10, category=["circle", *["disc"] * (len(instances) - 1)])
    with pytest.raises(EvaluationError, match="category id 10 stands for several categories in the run: circle, disc"):
        align(two_names, images, truth)
