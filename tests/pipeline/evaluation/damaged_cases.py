"""Randomly damaged truths: pycocotools' numbers where it defines them, and a note or a refusal elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.dataset.types import AnnotationError
from pipeline.evaluation.ground_truth import EvaluationError
from pipeline.evaluation.metrics import evaluate
from tests.pipeline.evaluation.coco_results import pycocotools, results_of

HEIGHT, WIDTH = 24, 30
CLASSES = {3: "cat", 1: "dog"}


def rle(box: list[int]) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}


def polygon(box: list[int]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def as_region(entry: dict[str, Any]) -> None:
    """What becomes of an object whose mask is damaged, in pycocotools' own terms: a crowd region of its box."""
    entry.update(iscrowd=1, segmentation=rle([int(v) for v in entry["bbox"]]))


def unchanged(entry: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Damage:
    """A damage of one annotation.

    Attributes:
        change: does it.
        expected: what is left of the undamaged annotation for masks; None where the file is refused.
        message: part of the note or refusal; "" where there is nothing to say.
    """

    change: Callable[[dict[str, Any]], Any]
    expected: Callable[[dict[str, Any]], Any] | None = unchanged
    message: str = ""


def put(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda entry: entry.update(values)


REGION = "annotations are ignore regions"
DAMAGES = {
    "id 0": Damage(put(id=0)),
    "id of another": Damage(put(id=2)),
    "no id": Damage(lambda entry: entry.pop("id")),
    "no iscrowd": Damage(lambda entry: entry.pop("iscrowd") if not entry["iscrowd"] else None),
    "ignore": Damage(put(ignore=1)),
    "no segmentation": Damage(lambda entry: entry.pop("segmentation"), as_region, REGION),
    "null mask": Damage(put(segmentation=None), as_region, REGION),
    "no polygon": Damage(put(segmentation=[]), as_region, REGION),
    "one point": Damage(put(segmentation=[[3, 3]]), as_region, REGION),
    "two points": Damage(put(segmentation=[[3, 3, 9, 9]]), as_region, REGION),
    "runs too short": Damage(put(segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}), as_region, REGION),
    "runs too long": Damage(put(segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 9999]}), as_region, REGION),
    "torn string": Damage(put(segmentation={"size": [HEIGHT, WIDTH], "counts": "P"}), as_region, REGION),
    "size of another": Damage(put(segmentation={"size": [WIDTH, HEIGHT], "counts": "h2"}), as_region, REGION),
    "no bbox": Damage(lambda entry: entry.pop("bbox"), unchanged, "take that of the mask"),
    "negative bbox": Damage(put(bbox=[9, 9, -4, 3]), unchanged, "take that of the mask"),
    "unlisted image": Damage(put(image_id=77), None, "images that are not listed"),
    "undeclared class": Damage(put(category_id=9), None, "unknown categories"),
    "far corner": Damage(put(segmentation=[[0, 0, 3.5e8, 0, 5, 5]]), None, "annotation"),
    "NaN corner": Damage(put(segmentation=[[0, 0, float("nan"), 0, 5, 5]]), None, "annotation"),
    "NaN box": Damage(put(bbox=[0, float("nan"), 4, 4]), None, "annotation"),
    "text mask": Damage(put(segmentation="poly"), None, "annotation"),
    "text class": Damage(put(category_id="1"), None, "category_id"),
}
DROPPED = ("unlisted image", "undeclared class")  # left out, as pycocotools leaves them out

boxes = st.tuples(
    st.sampled_from([0, 4, 8, 12]), st.sampled_from([0, 4, 8]), st.integers(3, 12), st.integers(3, 10)
).map(list)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], pd.DataFrame, list[tuple[int, str]]]:
    """A COCO object, an instances table, and damages of some annotations as (index, name)."""
    image_ids = draw(st.permutations([9, 2, 7]))
    num = draw(st.integers(2, 10))
    annotations: list[dict[str, Any]] = []
    for index in range(num):
        box = draw(boxes)
        segmentation = draw(st.sampled_from([rle, polygon]))(box)
        annotations.append({
            "id": index + 1,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(list(CLASSES))),
            "bbox": box,
            "area": float(box[2] * box[3]),
            "iscrowd": int(draw(st.integers(0, 5)) == 0),
            "segmentation": segmentation,
        })  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
    }
    rows = []
    for index in range(draw(st.integers(0, 15))):
        near = draw(st.integers(0, num - 1))
        is_near = draw(st.booleans())
        box = annotations[near]["bbox"] if is_near else draw(boxes)
        category_id = annotations[near]["category_id"] if is_near else draw(st.sampled_from(list(CLASSES)))
        x, y, w, h = box
        rows.append({
            "image_id": f"{annotations[near]['image_id']}.png",
            "category_id": category_id,
            "category": CLASSES[category_id],
            "score": np.float32(draw(st.sampled_from([0.2, 0.4, 0.6, 0.8])) + 0.001 * (index % 2)),
            **{name: np.float32(value) for name, value in zip(("x1", "y1", "x2", "y2"), (x, y, x + w, y + h))},
            "rle_counts": rle(box)["counts"],
            "image_height": HEIGHT,
            "image_width": WIDTH,
        })  # fmt: skip
    columns = ["image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2", "rle_counts"]
    frame = pd.DataFrame(rows, columns=[*columns, "image_height", "image_width"])
    damages = draw(st.lists(st.tuples(st.integers(0, num - 1), st.sampled_from(list(DAMAGES))), max_size=3))
    return content, frame, list({index: name for index, name in damages}.items())


def check_damaged(case: tuple[dict[str, Any], pd.DataFrame, list[tuple[int, str]]]) -> None:
    """Checks the figures, notes or refusal of one case."""
    content, frame, damages = case
    damaged = copy.deepcopy(content)
    whole = content["annotations"]
    for index, name in damages:
        damage = DAMAGES[name]
        entry = damaged["annotations"][index]
        damage.change(entry)
        if damage.expected is None:
            whole[index] = None if name in DROPPED else entry
        else:
            damage.expected(whole[index])
    content["annotations"] = [entry for entry in whole if entry is not None]
    try:
        metrics = evaluate(frame, None, damaged)
    except (AnnotationError, EvaluationError) as error:
        refused = [name for _, name in damages if DAMAGES[name].expected is None and name not in DROPPED]
        is_left = bool(content["annotations"]) and not all(DAMAGES[n].message == REGION for _, n in damages)
        assert refused or not is_left or len(damages) == len(whole), error
        assert all(DAMAGES[name].message in str(error) for name in refused)
        return
    for name in {name for _, name in damages}:
        assert any(DAMAGES[name].message in note for note in metrics.notes) or not DAMAGES[name].message, name
    want = pycocotools(content, results_of(frame, content, "segm"), "segm")
    got = metrics.coco["segm"]
    np.testing.assert_allclose(got.stats, want.stats, rtol=0, atol=1e-12)
    if not len(frame) or not content["annotations"]:
        return
    tp = metrics.overall("segm", "true_positives")
    assert tp + metrics.overall("segm", "false_negatives") == sum(not e["iscrowd"] for e in content["annotations"])
