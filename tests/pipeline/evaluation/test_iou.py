"""Pairs at one threshold: the compiled way finds those of the way that asks pycocotools for every IoU."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation.coco import evaluate_table
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import match

SIZE = (40, 50)


def rle_of(box: np.ndarray) -> dict:
    x, y, w, h = box.tolist()
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return coco_mask.encode(mask)


def polygon_of(box: np.ndarray) -> list[float]:
    x, y, w, h = box.tolist()
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def draw(seed: int, num_detections: int = 400) -> tuple[Truth, DetectionTable]:
    """Images in no order of their ids, boxes on a coarse grid so that many IoU are equal, few scores, crowd regions,
    and segmentations of every kind."""
    rng = np.random.default_rng(seed)
    image_ids = [9, 2, 7, 4]

    def boxes(num: int) -> np.ndarray:
        return np.concatenate([rng.integers(0, 4, (num, 2)) * 8, rng.integers(1, 4, (num, 2)) * 5], axis=1)

    kinds = [
        lambda box: [polygon_of(box)],
        lambda box: rle_of(box),
        lambda box: {**rle_of(box), "counts": rle_of(box)["counts"].decode()},
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
            "segmentation": kinds[int(rng.integers(len(kinds)))](box),
        }
        for number, box in enumerate(boxes(60))
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in image_ids]
    truth = Truth(images, annotations, [{"id": i, "name": f"class {i}"} for i in (3, 1, 2)])
    found = boxes(num_detections)
    return truth, DetectionTable(
        rng.choice(image_ids, num_detections).astype(np.int64),
        rng.integers(1, 4, num_detections),
        rng.integers(0, 6, num_detections) / 5,
        found.astype(np.float64),
        [rle_of(box)["counts"] for box in found],
        np.tile(SIZE, (num_detections, 1)),
    )


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("limits", [(0.5, 0.0, 100), (0.5, 0.5, 100), (0.9, 0.3, 5), (1.0, 0.0, 100), (0.0, 0.2, 100)])
def test_known_overlaps_give_the_same_pairs(iou_type, limits):
    iou_threshold, score_threshold, max_detections = limits
    for seed in range(5):
        truth, table = draw(seed, num_detections=1500 if seed == 0 else 400)
        settings = {
            "iou_threshold": iou_threshold,
            "score_threshold": score_threshold,
            "max_detections": max_detections,
        }
        want = match(truth, table, iou_type, **settings)
        got = match(truth, table, iou_type, **settings, overlaps=find_overlaps(truth, table, iou_type))
        for name in ("rows", "truths", "ious", "ignored", "found", "counted"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        assert len(want.rows) and (iou_threshold > 0.5 or (want.found.any() and want.ignored.any()))
        if seed == 0:
            assert len(find_overlaps(truth, table, iou_type).rows) < len(table)  # more than are looked at


def test_nothing_to_match():
    truth, table = draw(1)
    none = table.take(np.zeros(0, np.int64))
    for one, other in ((truth, none), (Truth(truth.images, [], truth.categories), table)):
        want = match(one, other, "segm")
        got = match(one, other, "segm", overlaps=find_overlaps(one, other, "segm"))
        assert got.rows.tolist() == want.rows.tolist()
        assert not got.found.any() and not got.is_true.any()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_known_overlaps_give_the_same_precision(iou_type):
    truth, table = draw(3)
    want = evaluate_table(truth, table, iou_type, backend="pycocotools")
    got = evaluate_table(truth, table, iou_type, overlaps=find_overlaps(truth, table, iou_type))
    np.testing.assert_array_equal(got.precision, want.precision)
    np.testing.assert_array_equal(got.recall, want.recall)


def test_masks_in_one_piece_are_those_of_the_list():
    for seed in range(4):
        truth = draw(seed)[0]
        far = [1e7, 0.0, 1e7, 5.0, 1.0, 5.0]
        truth.annotations[7]["segmentation"] = [far]
        if seed == 3:
            truth.annotations[:] = [entry for entry in truth.annotations if isinstance(entry["segmentation"], dict)]
        text, offsets, sizes = truth.rle_text
        for place, rle in enumerate(truth.rles):
            counts = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
            assert text[offsets[place] : offsets[place + 1]].tobytes() == counts
            assert sizes[place].tolist() == list(rle["size"])
        assert len(offsets) == len(truth.annotations) + 1 and offsets[-1] == len(text)
