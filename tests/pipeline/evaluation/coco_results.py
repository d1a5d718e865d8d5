"""COCO result entries of an instances table, tables of result entries, and pycocotools as its own demo calls it."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.coco import CocoResult, match_coco
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps


def results_of(instances: pd.DataFrame, coco: dict[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """Entries in the table's order; `iou_type` is bbox or segm."""
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    entries = []
    for row in instances.itertuples():
        entry = {"image_id": ids[row.image_id], "category_id": int(row.category_id), "score": float(row.score)}
        if iou_type == "bbox":
            x1, y1, x2, y2 = (float(v) for v in (row.x1, row.y1, row.x2, row.y2))
            entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        else:
            entry["segmentation"] = {"size": [row.image_height, row.image_width], "counts": row.rle_counts}
        entries.append(entry)
    return entries


def table_of(results: Sequence[Mapping[str, Any]]) -> DetectionTable:
    """Result entries with bbox, compressed RLE or keypoints as a table."""
    masks = [entry["segmentation"] for entry in results if "segmentation" in entry]
    return DetectionTable(
        image_ids=np.array([entry["image_id"] for entry in results], np.int64),
        category_ids=np.array([entry["category_id"] for entry in results], np.int64),
        scores=np.array([entry["score"] for entry in results], np.float64),
        bboxes=np.array([entry.get("bbox", [0] * 4) for entry in results], np.float64).reshape(-1, 4),
        counts=[mask["counts"] for mask in masks] if masks or not results else None,
        sizes=np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2) if masks or not results else None,
        keypoints=[entry.get("keypoints", []) for entry in results],
    )


def compiled(
    content: dict[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str, max_detections: int = 100
) -> CocoResult:
    """The figures of the compiled evaluator."""
    truth, table = Truth.from_coco(content), table_of(results)
    return match_coco(truth, table, find_overlaps(truth, table, iou_type)).result(max_detections)


def pycocotools(content: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> Any:
    """An evaluator of pycocotools with its figures (an empty list of results is a data set without annotations)."""
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
    return evaluator
