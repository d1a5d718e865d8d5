"""COCO's figures against plain pycocotools: the same to the last digit, on published pairs and on mutated input."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.breakdown import threshold_figures
from pipeline.evaluation.coco import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    CocoMatches,
    evaluate_by_pycocotools,
    join_matches,
    match_coco,
)
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import match
from pipeline.evaluation.run_detections import align
from pipeline.masks.rle import polygons_to_rle
from tests.pipeline.evaluation.coco_results import compiled, pycocotools, table_of
from tests.pipeline.evaluation.random_cases import random_case


def matches_of(truth, table, iou_type: str = "segm") -> CocoMatches:
    return match_coco(truth, table, find_overlaps(truth, table, iou_type))


FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def only(results: list[dict], iou_type: str) -> list[dict]:
    """Result entries as a detector for this kind of IoU alone writes them: pycocotools takes areas from boxes."""
    kept = ("image_id", "category_id", "score", FIELDS[iou_type])
    return [{key: value for key, value in entry.items() if key in kept} for entry in results]


def with_rle(content: dict, results: list[dict]) -> list[dict]:
    """Result entries with polygons as RLE, the form of the Parquet."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for entry in results:
        if isinstance(entry.get("segmentation"), list):
            height, width = sizes[entry["image_id"]]
            counts = polygons_to_rle(entry["segmentation"], height, width)
            entry["segmentation"] = {"size": [height, width], "counts": counts}
    return results


CASES = ["val2014_100_bbox", "val2014_100_segm", "small_segm", "small_bbox", "small_keypoints"]


@pytest.mark.parametrize("name", CASES)
def test_published_fixtures(shared_data, name):
    folder = shared_data / "coco_eval_fixtures"
    case = json.loads((folder / "expected_pycocotools.json").read_text())[name]
    content, results = (json.loads((folder / "faster_coco_eval/tests" / case[key]).read_text()) for key in ("gt", "dt"))
    results = with_rle(content, only(results, case["iouType"]))
    before = copy.deepcopy((content, results))
    want = pycocotools(content, results, case["iouType"])
    if name.startswith("val2014") or name == "small_bbox":  # the others are published with areas of their boxes
        np.testing.assert_allclose(want.stats, case["stats"], rtol=0, atol=1e-12)
    truth, table = Truth.from_coco(content), table_of(results)
    overlaps = find_overlaps(truth, table, case["iouType"])
    for got in (match_coco(truth, table, overlaps).result(), evaluate_by_pycocotools(truth, table, overlaps)):
        np.testing.assert_allclose(got.stats, want.stats, rtol=0, atol=1e-12)
    assert (content, results) == before


@pytest.fixture(scope="module")
def pair(drawn_run) -> tuple[dict, list[dict]]:
    """A truth with crowds and keypoints, and results of all three kinds in one."""
    from pipeline.tables import load_instances

    rng = random.Random(3)
    content = drawn_run.coco
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = int(index % 6 == 4)
        x, y, w, h = entry["bbox"]
        points = [v for _ in range(17) for v in (x + rng.random() * w, y + rng.random() * h, rng.choice([0, 1, 2]))]
        entry.update(keypoints=points, num_keypoints=sum(v > 0 for v in points[2::3]))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    of_image: dict[int, list[dict]] = {}
    for entry in content["annotations"]:
        of_image.setdefault(entry["image_id"], []).append(entry)
    results = []
    for row in load_instances(drawn_run.uri).itertuples():
        x, y, w, h = (float(v) for v in (row.x1, row.y1, row.x2 - row.x1, row.y2 - row.y1))
        results.append(
            {
                "image_id": ids[row.image_id],
                "category_id": row.category_id,
                "score": round(float(row.score), 1),  # many equal scores
                "bbox": [x, y, w, h],
                "segmentation": {"size": [row.image_height, row.image_width], "counts": row.rle_counts},
                "keypoints": [v + rng.gauss(0, 2) for v in rng.choice(of_image[ids[row.image_id]])["keypoints"]],
            }
        )
    return content, results


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_all_curves_and_figures_of_classes_are_pycocotools_own(pair, iou_type):
    content, results = pair
    results = only(results, iou_type)
    got, want = compiled(content, results, iou_type), pycocotools(content, results, iou_type)
    for name, expected in (
        ("stats", want.stats),
        ("precision", want.eval["precision"]),
        ("recall", want.eval["recall"]),
    ):
        np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=1e-12)
    assert np.array_equal(IOU_THRESHOLDS, want.params.iouThrs)
    assert np.array_equal(RECALL_THRESHOLDS, want.params.recThrs)
    assert 0 < got.stats[0] < 1 and got.backend == "compiled"
    assert list(got.category_ids) == want.params.catIds
    truth, table = Truth.from_coco(content), table_of(results)
    by_pycocotools = evaluate_by_pycocotools(truth, table, find_overlaps(truth, table, iou_type))
    np.testing.assert_array_equal(by_pycocotools.precision, got.precision)
    assert by_pycocotools.by_category() == got.by_category() and by_pycocotools.backend == "pycocotools"


def put(field: str, value: Any, where: str, share: float = 0.0) -> Callable:
    def mutate(content: dict, results: list[dict], rng: random.Random) -> None:
        entries = results if where == "results" else content[where]
        for entry in [rng.choice(entries), *(e for e in entries if rng.random() < share)]:
            entry[field] = value

    return mutate


def reversed_order(content: dict, results: list[dict], rng: random.Random) -> None:
    results.reverse()
    content["annotations"].reverse()
    content["images"].reverse()


def many_on_one(content: dict, results: list[dict], rng: random.Random) -> None:
    results += [{**results[0], "score": rng.random()} for _ in range(130)]


MUTATIONS: dict[str, Callable] = {
    "no results": lambda c, r, g: r.clear(),
    "no truth": lambda c, r, g: c["annotations"].clear(),
    "neither": lambda c, r, g: (r.clear(), c["annotations"].clear()),
    "crowd only": put("iscrowd", 1, "annotations", 1.0),
    "duplicate results": lambda c, r, g: r.extend(copy.deepcopy(r[::2])),
    "one score for all": put("score", 0.5, "results", 1.0),
    "negative score": put("score", -0.5, "results"),
    "whole score": put("score", 1, "results", 0.5),
    "area 0": put("area", 0, "annotations", 0.5),
    "area on the border of small": put("area", 32**2, "annotations", 0.5),
    "ignored annotations": put("ignore", 1, "annotations", 0.5),
    "empty bbox": put("bbox", [3, 3, 0, 0], "results", 0.3),
    "reversed order": reversed_order,
    "130 detections of one object": many_on_one,
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_mutated_input_gives_the_same_numbers(pair, name, iou_type):
    content, results = copy.deepcopy(pair)
    results = only(results, iou_type)
    MUTATIONS[name](content, results, random.Random(name))
    results = only(results, iou_type)
    want = pycocotools(content, results, iou_type)
    np.testing.assert_allclose(compiled(content, results, iou_type).stats, want.stats, rtol=0, atol=1e-12)


def counted_per_image(content: dict) -> None:
    of_image: dict[int, int] = {}
    for entry in content["annotations"]:
        entry["id"] = of_image[entry["image_id"]] = of_image.get(entry["image_id"], -1) + 1


@pytest.mark.parametrize(
    "change",
    [
        counted_per_image,
        lambda c: c["annotations"][3].update(id=0),
        lambda c: [entry.update(id=7) for entry in c["annotations"]],
        lambda c: [entry.pop("id") for entry in c["annotations"]],
        lambda c: [entry.pop("iscrowd") for entry in c["annotations"] if not entry["iscrowd"]],
    ],
    ids=["per image", "0", "all equal", "absent", "iscrowd absent"],
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_ids_of_annotations_and_an_absent_iscrowd_change_nothing(pair, iou_type, change):
    """pycocotools takes an annotation of id 0 for "not matched", and one of two equal ids for both."""
    content, results = copy.deepcopy(pair)
    results = only(results, iou_type)
    want = compiled(content, results, iou_type)
    change(content)
    np.testing.assert_array_equal(compiled(content, results, iou_type).precision, want.precision)
    truth, table = Truth.from_coco(content), table_of(results)
    by_pycocotools = evaluate_by_pycocotools(truth, table, find_overlaps(truth, table, iou_type))
    np.testing.assert_array_equal(by_pycocotools.precision, want.precision)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_parts_join_to_the_whole(drawn_run, frames, iou_type):
    truth = Truth.load(drawn_run.coco)
    table, _ = align(frames[0], frames[1], truth)
    want = matches_of(truth, table, iou_type).result()
    shares = [[1, 5], [8], [2, 3, 4], [6, 7]]
    parts = [
        matches_of(truth.only(np.array(ids)), table.take(np.isin(table.image_ids, ids)), iou_type) for ids in shares
    ]
    for order in (parts, parts[::-1]):
        got = join_matches(order).result()
        np.testing.assert_array_equal(got.stats, want.stats)
        np.testing.assert_array_equal(got.precision, want.precision)


@pytest.mark.parametrize("max_detections", [1, 5, 40, 1000])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_limit_of_detections_is_pycocotools_own(iou_type, max_detections):
    truth, table = random_case(3, num_detections=1500)
    overlaps = find_overlaps(truth, table, iou_type)
    got = match_coco(truth, table, overlaps).result(max_detections)
    want = evaluate_by_pycocotools(truth, table, overlaps, max_detections)
    np.testing.assert_array_equal(got.precision, want.precision)
    np.testing.assert_array_equal(got.recall, want.recall)
    assert got.names[8] == f"AR{max_detections}" and f"AR{max_detections}" in got.by_category()[1]


@pytest.mark.parametrize("seed", range(4))
def test_no_score_threshold_gives_a_class_a_higher_f1_than_the_best(seed):
    truth, table = random_case(seed, num_detections=120)
    overlaps = find_overlaps(truth, table, "segm")
    best = match_coco(truth, table, overlaps).best_thresholds(0.5)

    def figures(score_threshold: float) -> dict[int | None, dict[str, float]]:
        matches = match(truth, table, overlaps, iou_threshold=0.5, score_threshold=score_threshold)
        return threshold_figures(truth, matches)

    every = [figures(score) for score in sorted(set(table.scores.tolist()))]
    assert set(best) == {1, 2, 3}
    for category_id, found in best.items():
        assert found.f1 == pytest.approx(max(of_classes[category_id]["F1"] for of_classes in every))
        at = figures(found.score_threshold)[category_id]
        assert [found.f1, found.precision, found.recall] == pytest.approx([at["F1"], at["precision"], at["recall"]])
        assert found.score_threshold == 0 or found.score_threshold not in table.scores  # some have the score 0


def test_a_class_that_is_not_found_or_not_there_has_no_best_threshold():
    truth, table = random_case(0, num_detections=0)
    matches = match_coco(truth, table, find_overlaps(truth, table, "bbox"))
    assert matches.best_thresholds(0.5) == {}
    truth, table = random_case(0)
    matches = match_coco(truth, table, find_overlaps(truth, table, "bbox"))
    assert len(matches.best_thresholds(0.5)) == 3 and matches.best_thresholds(0.52) == {}


def test_all_of_150_objects_are_found_where_the_limit_allows_it():
    boxes = [[10.0 * (n % 15), 10.0 * (n // 15), 8.0, 8.0] for n in range(150)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 150}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
    }
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": box} for box in boxes]
    assert compiled(content, results, "bbox").stats[0] == pytest.approx(67 / 101)  # recall 100 / 150
    assert compiled(content, results, "bbox", 150).stats[0] == pytest.approx(1.0)


def test_a_curve_that_was_not_measured_is_refused(pair):
    content, results = pair
    result = compiled(content, only(results, "bbox"), "bbox")
    recall, precision = result.pr_curve(0.75)
    assert len(recall) == len(precision) == 101
    with pytest.raises(ValueError, match=r"iou_threshold 0\.52 was not evaluated"):
        result.pr_curve(iou_threshold=0.52)
