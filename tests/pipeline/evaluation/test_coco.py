"""The two evaluators against plain pycocotools: the same figures to the last digit, or the same kind of error."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.coco import evaluate_part, evaluate_results, evaluate_table, merge_parts
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.input_check import are_plain_results, is_plain_truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.run_detections import align
from tests.pipeline.evaluation.random_cases import random_case


def plain_pycocotools(content: dict, results: list[dict], iou_type: str) -> np.ndarray:
    """pycocotools as its own demo calls it (an empty list of results is a data set without annotations)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = COCO(), COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        if results:
            detections = truth.loadRes(copy.deepcopy(results))
        else:
            detections.dataset = {**copy.deepcopy(content), "annotations": []}
            detections.createIndex()
        evaluator = COCOeval(truth, detections, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def outcome(work: Callable[[], Any]) -> np.ndarray | type:
    try:
        return work()
    except Exception as error:
        return type(error)


def assert_same(content: dict, results: list[dict], iou_type: str) -> None:
    want = outcome(lambda: plain_pycocotools(content, results, iou_type))

    def stats(backend: str) -> np.ndarray:
        return evaluate_results(content, results, iou_type, backend=backend).stats

    for backend in ("auto", "pycocotools"):
        got = outcome(partial(stats, backend))
        if isinstance(want, type):
            assert got is want
        else:
            assert not isinstance(got, type), got
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


CASES = ["val2014_100_bbox", "val2014_100_segm", "small_segm", "small_bbox", "small_keypoints"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["auto", "compiled", "pycocotools"])
def test_published_fixtures(shared_data, name, backend):
    folder = shared_data / "coco_eval_fixtures"
    case = json.loads((folder / "expected_pycocotools.json").read_text())[name]
    truth, results = (json.loads((folder / "faster_coco_eval/tests" / case[key]).read_text()) for key in ("gt", "dt"))
    before = copy.deepcopy((truth, results))
    got = evaluate_results(truth, results, case["iouType"], backend=backend)
    np.testing.assert_allclose(got.stats, case["stats"], rtol=0, atol=1e-12)
    assert (truth, results) == before


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


FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def only(results: list[dict], iou_type: str) -> list[dict]:
    """Result entries as a detector for this kind of IoU alone writes them."""
    return [
        {k: v for k, v in r.items() if k in ("image_id", "category_id", "score", FIELDS[iou_type])} for r in results
    ]


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_plain_input_goes_to_the_fast_evaluator_and_agrees(pair, iou_type):
    content, results = pair
    results = only(results, iou_type)
    assert is_plain_truth(content, iou_type) and are_plain_results(content, results, iou_type)
    fast = evaluate_results(content, results, iou_type)
    slow = evaluate_results(content, results, iou_type, backend="pycocotools")
    assert (fast.backend, slow.backend) == ("compiled", "pycocotools")
    for name in ("stats", "precision", "recall", "iou_thresholds", "recall_thresholds"):
        np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=0, atol=1e-12)
    assert 0 < fast.stats[0] < 1
    assert fast.category_ids == slow.category_ids
    for number, figures in fast.by_category().items():
        assert figures == pytest.approx(slow.by_category()[number], abs=1e-12)
    assert_same(content, results, iou_type)


def drop(field: str, where: str) -> Callable:
    def mutate(content: dict, results: list[dict], rng: random.Random) -> None:
        entries = results if where == "results" else content[where]
        rng.choice(entries).pop(field, None)

    return mutate


def put(field: str, value: Any, where: str, share: float = 0.0) -> Callable:
    def mutate(content: dict, results: list[dict], rng: random.Random) -> None:
        entries = results if where == "results" else content[where]
        for entry in [rng.choice(entries), *(e for e in entries if rng.random() < share)]:
            entry[field] = value

    return mutate


def crowd_only(content: dict, results: list[dict], rng: random.Random) -> None:
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


def duplicate_image(content: dict, results: list[dict], rng: random.Random) -> None:
    content["images"].append(dict(content["images"][0]))


def duplicate_results(content: dict, results: list[dict], rng: random.Random) -> None:
    results += copy.deepcopy(results[::2])


def duplicate_annotation_id(content: dict, results: list[dict], rng: random.Random) -> None:
    content["annotations"][5]["id"] = content["annotations"][2]["id"]


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
    "no images, no truth": lambda c, r, g: (c["images"].clear(), c["annotations"].clear(), r.clear()),
    "crowd only": crowd_only,
    "one category less": lambda c, r, g: c["categories"].pop(),
    "no category": lambda c, r, g: c["categories"].clear(),
    "duplicate image": duplicate_image,
    "duplicate results": duplicate_results,
    "duplicate annotation id": duplicate_annotation_id,
    "annotation id 0": put("id", 0, "annotations"),
    "one score for all": put("score", 0.5, "results", 1.0),
    "a score that is not a number": put("score", float("nan"), "results"),
    "negative score": put("score", -0.5, "results"),
    "whole score": put("score", 1, "results", 0.5),
    "area 0": put("area", 0, "annotations", 0.5),
    "area on the border of small": put("area", 32**2, "annotations", 0.5),
    "ignored annotations": put("ignore", 1, "annotations", 0.5),
    "unknown image in results": put("image_id", 999, "results"),
    "unknown category in results": put("category_id", 999, "results", 0.3),
    "unknown category in truth": put("category_id", 999, "annotations"),
    "unknown image in truth": put("image_id", 999, "annotations"),
    "empty bbox": put("bbox", [3, 3, 0, 0], "results", 0.3),
    "reversed order": reversed_order,
    "130 detections of one object": many_on_one,
    "text as image id in results": put("image_id", "1", "results"),
    **{f"results without {f}": drop(f, "results") for f in ("score", "image_id", "category_id", "bbox")},
    **{f"truth without {f}": drop(f, "annotations") for f in ("area", "iscrowd", "image_id", "category_id", "id")},
    "truth without bbox": drop("bbox", "annotations"),
    "truth without segmentation": drop("segmentation", "annotations"),
    "images without a size": drop("height", "images"),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_mutated_input_gives_the_same_numbers_or_the_same_kind_of_error(pair, name, iou_type):
    content, results = copy.deepcopy(pair)
    results = only(results, iou_type)
    MUTATIONS[name](content, results, random.Random(name))
    assert_same(content, results, iou_type)


@pytest.mark.parametrize("name", ["no results", "crowd only", "results without score", "reversed order"])
def test_mutated_keypoints(pair, name):
    content, results = copy.deepcopy(pair)
    results = only(results, "keypoints")
    MUTATIONS[name](content, results, random.Random(name))
    assert_same(content, results, "keypoints")


def test_segm_results_with_a_box_take_their_area_from_it(pair):
    """pycocotools takes the area of a result from its box if it has one; `DetectionTable.to_results` leaves it out."""
    content, results = pair
    boxed = [{k: v for k, v in r.items() if k != "keypoints"} for r in results]
    assert_same(content, boxed, "segm")
    small = copy.deepcopy(content)
    small["annotations"] = [{**a, "area": 1000} for a in small["annotations"]]
    assert_same(small, boxed, "segm")


def test_wrong_choices_are_named(pair):
    content, results = pair
    with pytest.raises(ValueError, match="iou_type is 'mask'; allowed are bbox, segm, keypoints"):
        evaluate_results(content, results, "mask")
    with pytest.raises(ValueError, match="backend is 'fast'"):
        evaluate_results(content, results, "segm", backend="fast")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_shares_merge_to_the_whole(drawn_run, frames, iou_type):
    truth = Truth.load(drawn_run.coco)
    instances, images = frames
    table, _ = align(instances, images, truth)
    want = evaluate_table(truth, table, iou_type, backend="pycocotools")
    shares = [[1, 5], [8], [2, 3, 4], [6, 7]]
    parts = [evaluate_part(truth.only(ids), table.take(np.isin(table.image_ids, ids)), iou_type) for ids in shares]
    for order in (parts, parts[::-1]):
        got = merge_parts(order, iou_type)
        np.testing.assert_allclose(got.stats, want.stats, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.precision, want.precision, rtol=0, atol=1e-12)
    with pytest.raises(ValueError):
        merge_parts([], iou_type)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_known_overlaps_give_the_same_precision(iou_type):
    truth, table = random_case(3)
    want = evaluate_table(truth, table, iou_type, backend="pycocotools")
    got = evaluate_table(truth, table, iou_type, overlaps=find_overlaps(truth, table, iou_type))
    np.testing.assert_array_equal(got.precision, want.precision)
    np.testing.assert_array_equal(got.recall, want.recall)
