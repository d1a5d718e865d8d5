"""The table of detections: rows picked, masks and result entries made of its columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.evaluation.detections import DetectionTable, to_text


@pytest.fixture
def table() -> DetectionTable:
    return DetectionTable(
        image_ids=np.array([5, 5, 6]),
        category_ids=np.array([1, 2, 1]),
        scores=np.array([0.9, 0.8, 0.7]),
        bboxes=np.array([[0, 0, 1, 1], [1, 2, 3, 4], [2, 2, 2, 2]], float),
        counts=["06", "15", "24"],
        sizes=np.array([[2, 3], [2, 3], [3, 2]]),
        keypoints=[[1, 2, 0], [3, 4, 1], [5, 6, 2]],
    )


@pytest.mark.parametrize("rows", [np.array([2, 0]), np.array([True, False, True])])
def test_picked_rows_keep_all_their_columns(table, rows):
    picked = table.take(rows)
    indices = rows.tolist() if rows.dtype != bool else [0, 2]
    assert len(picked) == 2
    for name in ("image_ids", "category_ids", "scores", "bboxes", "sizes"):
        np.testing.assert_array_equal(getattr(picked, name), getattr(table, name)[indices])
    assert picked.counts.to_pylist() == [table.counts.to_pylist()[index] for index in indices]
    assert picked.keypoints == [table.keypoints[index] for index in indices]


def test_result_entries_hold_what_their_kind_of_iou_needs(table):
    first = {"image_id": 5, "category_id": 1, "score": 0.9}
    assert table.to_results("bbox")[0] == {**first, "bbox": [0, 0, 1, 1]}
    # Without `bbox`: pycocotools would take the entry's area from it.
    assert table.to_results("segm")[0] == {**first, "segmentation": {"size": [2, 3], "counts": "06"}}
    assert table.to_results("keypoints")[0] == {**first, "keypoints": [1.0, 2.0, 0.0]}
    assert [rle["size"] for rle in table.to_rles()] == [[2, 3], [2, 3], [3, 2]]


def test_a_table_without_masks_or_keypoints_says_what_to_load():
    table = DetectionTable(np.ones(1, int), np.ones(1, int), np.ones(1), np.ones((1, 4)))
    with pytest.raises(ValueError, match="load the instances with rle_counts"):
        table.to_results("segm")
    with pytest.raises(ValueError, match="load the instances with keypoints"):
        table.to_results("keypoints")


@pytest.mark.parametrize(
    "counts",
    [
        ["06", b"15"],
        pd.Series(["06", "15"]),
        pa.array(["06", "15"]),
        pa.chunked_array([["06"], ["15"]]),
        pa.chunked_array([pa.array(["06", "15"]).dictionary_encode()]),
    ],
    ids=["list", "pandas", "arrow", "chunks", "dictionary"],
)
def test_rle_strings_of_any_container_become_one_arrow_array(counts):
    text = to_text(counts)
    assert isinstance(text, pa.Array) and text.type == pa.large_string() and text.to_pylist() == ["06", "15"]
    assert to_text(pa.chunked_array([], pa.string())).to_pylist() == []
