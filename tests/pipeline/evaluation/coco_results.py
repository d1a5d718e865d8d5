"""COCO result entries of an instances table, written down independently of the code under test."""

from __future__ import annotations

from typing import Any

import pandas as pd


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
