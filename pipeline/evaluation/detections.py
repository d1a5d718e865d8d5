"""Detections as a table of columns (`DetectionTable`), the input of COCO's evaluation and of every other figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.types import Rle


@dataclass(frozen=True)
class DetectionTable:
    """Detections as columns. The order of rows decides between equal scores.

    Attributes:
        image_ids, category_ids: int64 [N], as the ground truth numbers them.
        scores: float64 [N].
        bboxes: float64 [N, 4], XYWH in pixels of the image.
        counts: N compressed RLE strings, or None without masks; a list becomes an Arrow array.
        sizes: int64 [N, 2], height and width of the masks, or None without masks.
        keypoints: N flat lists of x, y, v triples, or None.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    bboxes: np.ndarray
    counts: pa.Array | Sequence[str] | None = None
    sizes: np.ndarray | None = None
    keypoints: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.counts is not None:
            object.__setattr__(self, "counts", to_text(self.counts))

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray) -> DetectionTable:
        """The table of the given rows, in the given order.

        Args:
            rows: bool [N] or row indices.
        """
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        index_list: list[int] = indices.tolist()
        return DetectionTable(
            self.image_ids[indices],
            self.category_ids[indices],
            self.scores[indices],
            self.bboxes[indices],
            None if self.counts is None else to_text(self.counts).take(pa.array(indices)),
            None if self.sizes is None else self.sizes[indices],
            None if self.keypoints is None else [self.keypoints[index] for index in index_list],
        )

    def to_rles(self) -> list[Rle]:
        """The masks as COCO RLE.

        Raises:
            ValueError: the table has no masks.
        """
        if self.counts is None or self.sizes is None:
            raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
        unique, size_of_row = np.unique(self.sizes[:, 0] << 32 | self.sizes[:, 1], return_inverse=True)
        sizes = [[int(size >> 32), int(size & 0xFFFFFFFF)] for size in unique]  # one list for each size, shared
        texts = to_text(self.counts).to_pylist()
        return [{"size": sizes[at], "counts": counts} for at, counts in zip(size_of_row.tolist(), texts, strict=True)]

    def to_results(self, iou_type: str) -> list[dict[str, object]]:
        """COCO result entries, as pycocotools' `loadRes` takes them.

        A segm entry has no `bbox`: pycocotools would take the entry's area from it instead of from the mask.

        Raises:
            ValueError: no masks for segm, or no keypoints for keypoints.
        """
        columns = zip(self.image_ids.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True)
        entries = [{"image_id": i, "category_id": c, "score": s} for i, c, s in columns]
        if iou_type == "bbox":
            for entry, bbox in zip(entries, self.bboxes.tolist(), strict=True):
                entry["bbox"] = bbox
        elif iou_type == "segm":
            for entry, rle in zip(entries, self.to_rles(), strict=True):
                entry["segmentation"] = rle
        else:
            if self.keypoints is None:
                raise ValueError("keypoint evaluation needs keypoints; load the instances with keypoints")
            for entry, keypoints in zip(entries, self.keypoints, strict=True):
                entry["keypoints"] = [float(value) for value in keypoints]
        return entries


def to_text(counts: Any) -> pa.Array:
    """RLE strings as one Arrow array of large strings.

    Args:
        counts: a sequence of str or bytes, a pandas column, or an Arrow array, chunked or not.
    """
    if isinstance(counts, pa.ChunkedArray):
        chunks = counts.cast(pa.large_string()).chunks or [pa.array([], pa.large_string())]
        counts = pa.concat_arrays(chunks, memory_pool=pa.system_memory_pool())
    if not isinstance(counts, pa.Array):
        if not hasattr(counts, "dtype"):
            counts = [text.decode("latin-1") if isinstance(text, bytes) else text for text in counts]
        counts = pa.array(counts, pa.large_string())
    return counts if counts.type == pa.large_string() else counts.cast(pa.large_string())
