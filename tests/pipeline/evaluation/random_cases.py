"""Random truths and detections that are hard to match: equal scores, equal IoU, crowd regions, every kind of mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth

SIZE = (40, 50)  # height, width of every image


def rle_of(box: np.ndarray) -> dict[str, Any]:
    """A full rectangle (XYWH, whole pixels) as COCO's compressed RLE."""
    x, y, w, h = box.tolist()
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return {"size": list(SIZE), "counts": coco_mask.encode(mask)["counts"].decode()}


def polygon_of(box: np.ndarray) -> list[float]:
    x, y, w, h = box.tolist()
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def random_case(seed: int, num_detections: int = 400) -> tuple[Truth, DetectionTable]:
    """60 annotations of three classes on four images, whose ids are in no order, and detections on them.

    Boxes lie on a coarse grid, so that many IoU are equal; scores are one of six; a fifth of the annotations are crowd
    regions; their segmentations are polygons, compressed and plain RLE.
    """
    rng = np.random.default_rng(seed)
    image_ids = [9, 2, 7, 4]

    def boxes(num: int) -> np.ndarray:
        return np.concatenate([rng.integers(0, 4, (num, 2)) * 8, rng.integers(1, 4, (num, 2)) * 5], axis=1)

    segmentations: list[Callable[[np.ndarray], Any]] = [
        lambda box: [polygon_of(box)],
        rle_of,
        lambda box: [polygon_of(box), polygon_of(box + [3, 2, 0, 0])],
        lambda box: {"size": list(SIZE), "counts": [0, SIZE[0] * 3, SIZE[0] * (SIZE[1] - 3)]},
    ]
    annotations = [
        {
            "id": number + 1,
            "image_id": int(rng.choice(image_ids)),
            "category_id": int(rng.integers(1, 4)),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(rng.random() < 0.2),
            "segmentation": segmentations[int(rng.integers(len(segmentations)))](box),
        }
        for number, box in enumerate(boxes(60))
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in image_ids]
    categories = [{"id": i, "name": f"class {i}"} for i in (3, 1, 2)]
    truth = Truth.from_coco({"images": images, "annotations": annotations, "categories": categories})
    detected = boxes(num_detections)
    return truth, DetectionTable(
        rng.choice(image_ids, num_detections).astype(np.int64),
        rng.integers(1, 4, num_detections),
        rng.integers(0, 6, num_detections) / 5,
        detected.astype(np.float64),
        [rle_of(box)["counts"] for box in detected],
        np.tile(SIZE, (num_detections, 1)),
    )
