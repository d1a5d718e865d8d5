"""VOC's and Cityscapes' AP against slow forms of their published algorithms, on masks in full size."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.run_detections import align
from pipeline.evaluation.voc_cityscapes import cityscapes_ap, voc_ap
from pipeline.tables import load_instances


@pytest.fixture(scope="module")
def case(drawn_run):
    """A truth with crowd regions and small objects, and detections with some doubled."""
    content = copy.deepcopy(drawn_run.coco)
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = int(index % 6 == 4)
    instances = load_instances(drawn_run.uri)
    doubled = instances.iloc[::3].assign(score=lambda f: (f["score"] * 0.9).astype(np.float32))
    truth = Truth.from_coco(content)
    return truth, align(pd.concat([instances, doubled], ignore_index=True), None, truth)[0]


def entries_of(truth):
    """The annotations as dicts."""
    columns = zip(
        truth.annotations.image_ids.tolist(),
        truth.annotations.category_ids.tolist(),
        truth.annotations.is_crowd.tolist(),
        strict=True,
    )
    return [{"image_id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in columns]


def decoded(truth, table):
    """The masks of the annotations and of the detections, bool [H, W] each."""
    sizes = truth.image_sizes[truth.image_index].tolist()
    annotated = [
        coco_mask.decode({"size": size, "counts": counts}).astype(bool)
        for size, counts in zip(sizes, truth.rles, strict=True)
    ]
    detected = [coco_mask.decode(rle).astype(bool) for rle in table.to_rles()]
    return annotated, detected


def test_voc_by_hand():
    """Two objects; hits at ranks 1 and 3, a miss between: the interpolated curve is 1 up to 0.5, then 2/3."""
    boxes = [[0, 0, 10, 10], [50, 50, 10, 10]]
    truth = Truth.from_coco({
        "images": [{"id": 1, "file_name": "a", "height": 99, "width": 99}],
        "annotations": [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": b} for i, b in enumerate(boxes)],
        "categories": [{"id": 1, "name": "x"}],
    })  # fmt: skip
    table = DetectionTable(
        np.ones(3, np.int64),
        np.ones(3, np.int64),
        np.array([0.9, 0.8, 0.7]),
        np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 10, 10]], float),
    )
    figures = voc_ap(truth, table, find_overlaps(truth, table, "bbox"))[1]
    assert figures["VOC_AP"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert figures["VOC_AP_11point"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


@pytest.mark.parametrize("method", ["area", "11point"])
def test_voc_on_masks_against_the_slow_form(case, method):
    truth, table = case
    annotated, detected = decoded(truth, table)
    name = {"area": "VOC_AP", "11point": "VOC_AP_11point"}[method]
    figures = voc_ap(truth, table, find_overlaps(truth, table, "segm"))
    got = {number: values[name] for number, values in figures.items()}
    entries = entries_of(truth)
    for number in truth.names:
        rows = [i for i in range(len(table)) if table.category_ids[i] == number]
        rows.sort(key=lambda i: -table.scores[i])
        total = sum(a["category_id"] == number and not a["iscrowd"] for a in entries)
        taken, hits = set(), []
        for i in rows:
            best, at = -1.0, None
            for j, a in enumerate(entries):
                if a["image_id"] == table.image_ids[i] and a["category_id"] == number:
                    shared = (annotated[j] & detected[i]).sum()
                    iou = shared / (detected[i].sum() if a["iscrowd"] else (annotated[j] | detected[i]).sum())
                    if iou > best:
                        best, at = iou, j
            if best >= 0.5 and entries[at]["iscrowd"]:
                continue
            hits.append(best >= 0.5 and at not in taken)
            if best >= 0.5:
                taken.add(at)
        recalls = [sum(hits[: k + 1]) / total for k in range(len(hits))]
        precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]

        def best_from(level, recalls=recalls, precisions=precisions):
            return max((p for r, p in zip(recalls, precisions, strict=True) if r >= level), default=0.0)

        if method == "11point":
            want = np.mean([best_from(level / 10) for level in range(11)])
        else:
            steps = [0.0, *sorted(set(recalls))]
            want = sum((b - a) * best_from(b) for a, b in itertools.pairwise(steps))
        assert got[number] == pytest.approx(want, abs=1e-12)
    assert got[None] == pytest.approx(np.mean([got[number] for number in truth.names]))


@pytest.mark.parametrize("min_region_px", [0, 300])
def test_cityscapes_against_the_slow_form(case, min_region_px):
    truth, table = case
    annotated, detected = decoded(truth, table)
    overlaps = find_overlaps(truth, table, "segm")
    got = cityscapes_ap(truth, table, overlaps, thresholds=(0.5, 0.75), min_region_px=min_region_px)
    entries = entries_of(truth)
    for number in truth.names:
        values = []
        for threshold in (0.5, 0.75):
            is_true, scores, missed = [], [], 0
            for image_id in truth.image_ids:
                gts = [j for j, a in enumerate(entries) if a["image_id"] == image_id and a["category_id"] == number]
                dts = [
                    i for i in range(len(table)) if table.image_ids[i] == image_id and table.category_ids[i] == number
                ]
                ignored = {j for j in gts if entries[j]["iscrowd"] or annotated[j].sum() < min_region_px}

                def hit(i, j, threshold=threshold):
                    return (annotated[j] & detected[i]).sum() / (annotated[j] | detected[i]).sum() > threshold

                for j in gts:
                    if j in ignored:
                        continue
                    matched = sorted((table.scores[i] for i in dts if hit(i, j)), reverse=True)
                    missed += not matched
                    scores += matched
                    is_true += [1] * bool(matched) + [0] * (len(matched) - 1)
                for i in dts:
                    if not any(hit(i, j) for j in gts):
                        share = sum((annotated[j] & detected[i]).sum() for j in ignored) / detected[i].sum()
                        if share <= threshold:
                            is_true.append(0)
                            scores.append(table.scores[i])
            points = [(0.0, 1.0)]
            for level in sorted(set(scores), reverse=True):
                kept = [label for label, score in zip(is_true, scores, strict=True) if score >= level]
                points.append((sum(kept) / (sum(is_true) + missed), sum(kept) / len(kept)))
            # Each point's precision holds over half the way to its neighbours; the last one's also over its own half.
            recall, precision = np.array(points).T
            ends = np.concatenate([[0.0], recall, [recall[-1]]])
            values.append(float((precision * (ends[2:] - ends[:-2]) / 2).sum()))
        assert got[number]["AP"] == pytest.approx(np.mean(values), abs=1e-12)
        assert got[number]["AP50"] == pytest.approx(values[0], abs=1e-12)
    assert 0 < got[None]["AP"] <= got[None]["AP50"] < 1


def test_more_masks_than_pycocotools_measures_at_once(case):
    truth, table = case
    many = table.take(np.tile(np.arange(len(table)), 256 // len(table) + 1))
    assert len(many) > 255
    ap, ap_of_many = (cityscapes_ap(truth, t, find_overlaps(truth, t, "segm"))[None]["AP"] for t in (table, many))
    assert 0 < ap_of_many < ap


def test_nothing_to_find_is_nan_and_nothing_found_is_zero(case):
    truth, table = case
    none = table.take(np.zeros(len(table), bool))
    overlaps = find_overlaps(truth, none, "segm")
    assert voc_ap(truth, none, overlaps)[None] == {"VOC_AP": 0, "VOC_AP_11point": 0}
    assert cityscapes_ap(truth, none, overlaps)[None]["AP"] == 0
    empty = replace(truth, annotations=truth.annotations.take(np.zeros(0, np.int64)))
    overlaps = find_overlaps(empty, table, "segm")
    assert np.isnan(voc_ap(empty, table, overlaps)[None]["VOC_AP"])
    assert np.isnan(cityscapes_ap(empty, table, overlaps)[None]["AP50"])
