"""A COCO data set with one of each kind of warning that `check_data` gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SQUARE = [[5.0, 4.0, 15.0, 4.0, 15.0, 14.0, 5.0, 14.0]]


def annotation(number: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [5, 4, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": SQUARE,
        **changes,
    }


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": 20, "width": 30, **changes}


def write_faulty_coco(folder: Path, write_photo: Callable[..., np.ndarray]) -> Path:
    """Writes `data.json` and its photos into a folder: one of each kind of warning that a COCO file can give.

    Photos 1 and 5 are one file under two names.
    """
    for number in range(1, 8):
        write_photo(folder / f"{number}.png", 20, 30, orientation=6 if number == 6 else None)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:200])
    content = {
        "images": [
            image(1),
            image(2, labelled_category_ids=[2]),
            image(3, height=40, width=60),  # size_disagrees
            image(4),  # unreadable_photo
            image(5, file_name=str(folder / "1.png")),  # duplicate_photo
            image(6),  # exif_not_applied
            image(7),
        ],
        "annotations": [
            annotation(1, 1),
            annotation(2, 2),  # class_not_looked_for
            annotation(5, 7, segmentation=[[50, 4, 60, 4, 60, 14]], bbox=[50, 4, 10, 10]),  # empty_box, empty_mask
            annotation(7, 7, segmentation=[[5, 4, 15, 4, 15, 28.5]], bbox=[5, 4, 10, 16]),  # polygon_outside
            annotation(8, 7, bbox=[1, 4, 14, 10]),  # box_off_mask
            annotation(10, 7, bbox=[5.5, 4, 10, 10]),
            annotation(11, 7, bbox=[5.5, 4, 10, 10]),  # duplicate_object
            annotation(12, 7, segmentation=None),  # a note
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = folder / "data.json"
    path.write_text(json.dumps(content))
    return path
