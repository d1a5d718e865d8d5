"""COCO's average precision by two evaluators that agree to the last digit: compiled kernels over flat arrays (fast),
and pycocotools (the reference, and what decides wherever an input is odd).

Source: Lin et al., Microsoft COCO (2014), section 5, as `pycocotools.cocoeval` computes it.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.results.truth import Truth, to_rle

IOU_TYPES = ("bbox", "segm", "keypoints")
BACKENDS = ("auto", "compiled", "pycocotools")
STAT_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
KEYPOINT_STAT_NAMES = (
    "AP", "AP50", "AP75", "AP_medium", "AP_large",
    "AR", "AR50", "AR75", "AR_medium", "AR_large",
)  # fmt: skip


@dataclass(frozen=True)
class CocoResult:
    """What COCO's evaluation gives for one kind of IoU.

    Attributes:
        iou_type: bbox, segm or keypoints.
        stats: COCO's 12 figures (10 for keypoints) in its order, float64; -1 where there is no truth to measure by.
        precision: float64 [T, R, K, A, M] over IoU thresholds, recall thresholds, categories, areas, detections an
            image; -1 as above.
        recall: float64 [T, K, A, M].
        category_ids: the K categories.
        iou_thresholds: the T thresholds.
        recall_thresholds: the R thresholds.
        backend: which evaluator computed it.
    """

    iou_type: str
    stats: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    category_ids: tuple[int, ...]
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    backend: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of `stats`."""
        return KEYPOINT_STAT_NAMES if self.iou_type == "keypoints" else STAT_NAMES

    def by_category(self) -> dict[int, dict[str, float]]:
        """AP, AP50, AP75 and AR (at most detections an image, all areas) of each category; -1 without truth."""
        figures = {}
        for place, number in enumerate(self.category_ids):
            precision, recall = self.precision[:, :, place, 0, -1], self.recall[:, place, 0, -1]
            figures[number] = {
                "AP": _mean(precision),
                **{
                    name: _mean(precision[np.isclose(self.iou_thresholds, threshold)])
                    for name, threshold in (("AP50", 0.5), ("AP75", 0.75))
                },
                "AR" if self.iou_type == "keypoints" else "AR100": _mean(recall),
            }
        return figures

    def pr_curve(self, category_id: int | None = None, iou_threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Recall and interpolated precision (float64 [R] each) at one IoU threshold, of one category or, with None,
        averaged over those with truth. Precision is NaN where there is none.

        Raises:
            ValueError: a threshold that was not evaluated, or an unknown category.
        """
        at = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold))
        if not len(at):
            raise ValueError(f"iou_threshold {iou_threshold} was not evaluated; {self.iou_thresholds.tolist()} were")
        curves = self.precision[at[0], :, :, 0, -1]
        if category_id is not None:
            if category_id not in self.category_ids:
                raise ValueError(f"there is no category {category_id}; there are {list(self.category_ids)}")
            curves = curves[:, [self.category_ids.index(category_id)]]
        curves = curves[:, (curves > -1).any(axis=0)]
        mean = curves.mean(axis=1) if curves.shape[1] else np.full(len(self.recall_thresholds), np.nan)
        return self.recall_thresholds, mean


@dataclass(frozen=True)
class DetectionTable:
    """Detections as columns, ready for either evaluator. The order of rows decides between equal scores.

    Attributes:
        image_ids, category_ids: int64 [N], ids of the truth.
        scores: float64 [N].
        bboxes: float64 [N, 4], XYWH in pixels of the image; None where only masks are evaluated.
        counts: N compressed RLE strings, or None; a list becomes an Arrow array.
        sizes: int64 [N, 2], height and width of the masks.
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
        """The table of these rows (a mask or places), in their order."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        listed: list[int] = places.tolist()
        return DetectionTable(
            self.image_ids[places],
            self.category_ids[places],
            self.scores[places],
            self.bboxes[places],
            None if self.counts is None else self.counts.take(pa.array(places)),  # type: ignore[union-attr]
            None if self.sizes is None else self.sizes[places],
            None if self.keypoints is None else [self.keypoints[i] for i in listed],
        )

    def to_rles(self) -> list[dict[str, Any]]:
        """The masks as COCO RLE.

        Raises:
            ValueError: the table has no masks.
        """
        if self.counts is None or self.sizes is None:
            raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
        unique, places = np.unique(self.sizes[:, 0] << 32 | self.sizes[:, 1], return_inverse=True)
        sizes = [[int(size >> 32), int(size & 0xFFFFFFFF)] for size in unique]  # one list for each size, shared
        texts = self.counts.to_pylist()  # type: ignore[union-attr]
        return [{"size": sizes[at], "counts": counts} for at, counts in zip(places.tolist(), texts, strict=True)]

    def to_results(self, iou_type: str) -> list[dict[str, Any]]:
        """COCO's result entries. A segm entry has no `bbox`, so that its area is its mask's."""
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


def evaluate_table(truth: Truth, detections: DetectionTable, iou_type: str, *, backend: str = "auto") -> CocoResult:
    """COCO's evaluation of a table of detections.

    Args:
        iou_type: bbox, segm or keypoints.
        backend: compiled, pycocotools, or auto: compiled where the input is plain.

    Raises:
        ValueError: an unknown iou_type or backend, detections without what the kind of IoU needs, or input that is odd
            where `compiled` is asked for.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    if backend != "pycocotools" and is_plain(truth.content, [], iou_type):
        try:
            return _accumulate(_match(truth, detections, iou_type), iou_type)
        except OddInput:
            if backend == "compiled":
                raise
    elif backend == "compiled":
        raise OddInput("the ground truth is not plain; backend auto or pycocotools takes it")
    return _by_pycocotools(truth.content, detections.to_results(iou_type), iou_type)


def evaluate_results(
    truth: Truth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str, *, backend: str = "auto"
) -> CocoResult:
    """COCO's evaluation of result entries, exactly as pycocotools does it.

    Args:
        truth: the ground truth, or a COCO JSON object.
        results: COCO result entries. Empty gives zeros where there is truth, -1 elsewhere.
        iou_type: bbox, segm or keypoints.
        backend: see `evaluate_table`.

    Raises:
        KeyError, AssertionError, ...: what pycocotools raises for entries without a needed field, results of unknown
            images, and the like; with `auto` both evaluators give the same answer or the same error, because odd
            input goes to pycocotools.
        ValueError: see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    content = truth.content if isinstance(truth, Truth) else truth
    if backend != "pycocotools" and is_plain(content, results, iou_type):
        known = Truth(content["images"], content["annotations"], content["categories"])
        table, areas = _to_table(known, results, iou_type)
        try:
            return _accumulate(_match(known, table, iou_type, areas), iou_type)
        except OddInput:
            if backend == "compiled":
                raise
    elif backend == "compiled":
        raise OddInput("the input is not plain; backend auto or pycocotools takes it")
    return _by_pycocotools(content, results, iou_type)


class OddInput(ValueError):
    """Input that pycocotools has to decide about."""


def evaluate_part(truth: Truth, detections: DetectionTable, iou_type: str) -> bytes:
    """What a share of the images contributes, to be sent home by a worker and merged there.

    Args:
        truth: the share's images and annotations (`Truth.only`), with all categories.
        detections: those on these images.

    Raises:
        ValueError: an unknown iou_type, or odd input, see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    if not is_plain(truth.content, [], iou_type):
        raise OddInput("the ground truth is not plain; evaluate it whole, by pycocotools")
    sink = io.BytesIO()
    np.savez(sink, iou_type=np.array(iou_type), **_match(truth, detections, iou_type).__dict__)
    return sink.getvalue()


def merge_parts(parts: Iterable[bytes], iou_type: str) -> CocoResult:
    """The figures of all shares together, exactly those of one evaluation over all images, whatever the order.

    Raises:
        ValueError: no part, or parts of other categories or of another kind of IoU.
    """
    loaded = [dict(np.load(io.BytesIO(part), allow_pickle=False)) for part in parts]
    if not loaded:
        raise ValueError("there is no part to merge")
    first = loaded[0]["category_ids"]
    for part in loaded:
        if str(part.pop("iou_type")) != iou_type or not np.array_equal(part["category_ids"], first):
            raise ValueError(f"a part is of another kind of IoU than {iou_type}, or of other categories")
    rows = {name: np.concatenate([part[name] for part in loaded]) for name in _Matched.ROWS}
    order = np.lexsort((rows["rank"], rows["image_ids"], rows["categories"]))
    num_objects = np.sum([part["num_objects"] for part in loaded], axis=0)
    return _accumulate(
        _Matched(**{name: value[order] for name, value in rows.items()}, num_objects=num_objects, category_ids=first),
        iou_type,
    )


_TRUTH_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("bbox", "keypoints", "num_keypoints")}
_RESULT_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("keypoints",)}


def is_plain(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> bool:
    """Whether an input has nothing odd about it: every needed field of the usual type, whole and unique ids, results
    of known images, finite scores. Only then are the two evaluators interchangeable.
    """
    images, annotations, categories = (content.get(key) for key in ("images", "annotations", "categories"))
    if not (isinstance(images, list) and isinstance(annotations, list) and isinstance(categories, list)):
        return False
    image_ids = _unique_ids(images)
    category_ids = _unique_ids(categories)
    if image_ids is None or category_ids is None or not categories or _unique_ids(annotations) is None:
        return False
    sizes = {image["id"]: [image.get("height"), image.get("width")] for image in images}
    needed = (*_TRUTH_FIELDS[iou_type], "area", "iscrowd")
    for entry in annotations:
        if not all(name in entry for name in needed) or "ignore" in entry:
            return False
        if entry.get("image_id") not in image_ids or entry.get("category_id") not in category_ids:
            return False
        if entry["id"] == 0 or not _plain_geometry(entry, _TRUTH_FIELDS[iou_type], sizes[entry["image_id"]]):
            return False  # id 0 is COCO's "not matched"
        if entry["iscrowd"] not in (0, 1) or not _is_number(entry["area"]):
            return False
    kinds = {frozenset(entry) for entry in results}
    if len(kinds) > 1:  # pycocotools looks at the first entry alone to tell what all are
        return False
    needed = (*_RESULT_FIELDS[iou_type], "image_id", "category_id", "score")
    if kinds and not (kinds >= set() and set(needed) <= set(next(iter(kinds)))):
        return False
    fields = next(iter(kinds), frozenset())
    if "caption" in fields or (iou_type == "keypoints" and "segmentation" in fields and "bbox" not in fields):
        return False
    for entry in results:
        if iou_type == "segm":
            has_polygons = "bbox" in fields and isinstance(entry["segmentation"], list)
            if not has_polygons and not _is_text_rle(entry["segmentation"]):
                return False
        if "bbox" in entry and not _plain_geometry(entry, ("bbox",), []):
            return False
        if entry["image_id"] not in image_ids or entry["category_id"] not in category_ids:
            return False
        score = entry["score"]
        if not _is_number(score) or not -sys.float_info.max <= score <= sys.float_info.max:
            return False
        if not _plain_geometry(entry, _RESULT_FIELDS[iou_type], sizes[entry["image_id"]]):
            return False
    return True


def _plain_geometry(entry: Mapping[str, Any], names: Sequence[str], size: list[Any]) -> bool:
    for name in names:
        value = entry[name]
        if name == "bbox":
            if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
                return False
        elif name == "segmentation":
            if isinstance(value, Mapping):
                if value.get("size") != size or not isinstance(value.get("counts"), str | bytes | list):
                    return False
            elif not isinstance(value, list) or not value or any(len(p) < 6 or len(p) % 2 for p in value):
                return False
        elif name == "keypoints" and (not isinstance(value, list) or len(value) != 51):
            return False  # COCO's 17 sigmas are built into both
    return True


def _is_text_rle(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("counts"), str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_ids(entries: Sequence[Mapping[str, Any]]) -> set[int] | None:
    ids = {entry.get("id") for entry in entries}
    if len(ids) < len(entries) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        return None
    return ids  # type: ignore[return-value]


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_AREAS_PX = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
_OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def _rules(iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of area, float64 [A, 2], and most detections of an image and class, int64 [M]."""
    if iou_type == "keypoints":
        return _AREAS_PX[[0, 2, 3]], np.array([20])
    return _AREAS_PX, np.array([1, 10, 100])


@dataclass(frozen=True)
class _Matched:
    """What matching leaves of the detections, by category, image and rank; nothing in it depends on other images.

    Attributes:
        image_ids, categories, rank: int64 [N]; categories are places in `category_ids`, ranks within image and class.
        scores: float64 [N].
        outcome: uint32 [N, A], see `eval_kernel.match_groups`.
        num_objects: int64 [K, A], annotations that count.
        category_ids: int64 [K], sorted.
    """

    image_ids: np.ndarray
    categories: np.ndarray
    rank: np.ndarray
    scores: np.ndarray
    outcome: np.ndarray
    num_objects: np.ndarray
    category_ids: np.ndarray

    ROWS: ClassVar[tuple[str, ...]] = ("image_ids", "categories", "rank", "scores", "outcome")


def _match(truth: Truth, table: DetectionTable, iou_type: str, areas: np.ndarray | None = None) -> _Matched:
    """COCO's matching; `areas` (float64 [N]) replaces the areas of the detections' own boxes or masks.

    Raises:
        OddInput: scores or masks that only pycocotools decides about.
        ValueError: detections without what the kind of IoU needs.
    """
    from pipeline.results import eval_kernel as kernel

    if not np.isfinite(table.scores).all():
        raise OddInput("a score is not finite; backend auto or pycocotools takes it")
    ranges, limits = _rules(iou_type)
    category_ids = np.array(sorted(category["id"] for category in truth.categories), np.int64)
    image_ids = np.array(sorted(image["id"] for image in truth.images), np.int64)
    group_of, truth_group, truths = _groups(truth, table, category_ids, image_ids)
    order = np.lexsort((-table.scores, group_of))  # stable: equal scores keep their order
    sorted_groups = group_of[order]
    begins = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    kept = rank < limits[-1]
    rows, rank, sorted_groups = order[kept], rank[kept], sorted_groups[kept]
    begins = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    groups = np.append(begins, len(rows)).astype(np.int64)
    first = np.searchsorted(truth_group, sorted_groups[begins], "left")
    end = np.searchsorted(truth_group, sorted_groups[begins], "right")
    pairs = np.concatenate([[0], np.cumsum(np.diff(groups) * (end - first))]).astype(np.int64)
    annotations = truth.annotations
    crowd = np.array([entry["iscrowd"] for entry in annotations], bool)
    truth_areas = np.array([entry["area"] for entry in annotations], np.float64)
    ignored = crowd
    ious, own_areas = np.zeros(pairs[-1]), np.zeros(len(rows))
    where = (rows, groups, first, end, truths)
    if iou_type == "segm":
        if table.counts is None or table.sizes is None:
            raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
        edges = _truth_edges(truth)
        bad = kernel.fill_mask_ious(
            ious, own_areas, pairs, *_buffers(table.counts),
            np.ascontiguousarray(table.sizes[:, 0]), np.ascontiguousarray(table.sizes[:, 1]), *where, *edges, crowd,
        )  # fmt: skip
        if bad >= 0:
            raise OddInput(f"the mask of detection {bad} is not plain RLE; backend auto or pycocotools takes it")
    elif iou_type == "bbox":
        boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
        kernel.fill_box_ious(ious, pairs, table.bboxes, *where, boxes, crowd)
        own_areas = (table.bboxes[:, 2] * table.bboxes[:, 3])[rows]
    else:
        if table.keypoints is None:
            raise ValueError("keypoint evaluation needs keypoints; load the instances with keypoints")
        points = np.array([list(one) for one in table.keypoints], np.float64)
        points = points.reshape(len(table), -1) if len(table) else np.zeros((0, 51))
        if len(table) and points.shape[1] != 3 * len(_OKS_SIGMAS):
            raise OddInput("detections need 17 keypoints; backend auto or pycocotools takes others")
        ignored = crowd | np.array([entry["num_keypoints"] == 0 for entry in annotations], bool)
        points = points.reshape(len(table), len(_OKS_SIGMAS), 3)[rows]
        own_areas = np.ptp(points[:, :, 0], axis=1) * np.ptp(points[:, :, 1], axis=1) if len(rows) else own_areas
        _fill_oks(ious, pairs, points, groups, first, end, [annotations[i] for i in truths.tolist()])
    own_areas = own_areas if areas is None else areas[rows]
    outcome = kernel.match_groups(
        ious, pairs, own_areas, groups, first, end, truths, crowd, ignored, truth_areas, ranges, IOU_THRESHOLDS
    )
    num_objects = np.zeros((len(category_ids), len(ranges)), np.int64)
    of_truth = (truth_group // max(len(image_ids), 1))[np.argsort(truths)] if len(truths) else truth_group
    for place, (low, high) in enumerate(ranges):
        counts = ~ignored & (truth_areas >= low) & (truth_areas <= high)
        num_objects[:, place] = np.bincount(of_truth[counts], minlength=len(category_ids))
    num_images = max(len(image_ids), 1)
    return _Matched(
        image_ids=image_ids[sorted_groups % num_images] if len(rows) else np.zeros(0, np.int64),
        categories=sorted_groups // num_images,
        rank=rank,
        scores=table.scores[rows],
        outcome=outcome,
        num_objects=num_objects,
        category_ids=category_ids,
    )


def _groups(
    truth: Truth, table: DetectionTable, category_ids: np.ndarray, image_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The group (category, then image) of each detection; and of the annotations sorted by it, with their places."""

    def number(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        at_image = np.searchsorted(image_ids, images)
        at_category = np.searchsorted(category_ids, categories)
        for known, at, wanted in ((image_ids, at_image, images), (category_ids, at_category, categories)):
            if len(wanted) and (not len(known) or (known[np.minimum(at, len(known) - 1)] != wanted).any()):
                raise OddInput("detections on images or of categories that the truth does not have")
        return at_category * len(image_ids) + at_image

    of_truth = number(
        np.array([entry["image_id"] for entry in truth.annotations], np.int64),
        np.array([entry["category_id"] for entry in truth.annotations], np.int64),
    )
    truths = np.argsort(of_truth, kind="stable")
    return number(table.image_ids, table.category_ids), of_truth[truths], truths


def _truth_edges(truth: Truth) -> tuple[np.ndarray, ...]:
    from pipeline.results import eval_kernel as kernel

    rles = truth.rles
    sizes = np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)
    text = to_text([rle["counts"] for rle in rles])
    heights, widths = (np.ascontiguousarray(sizes[:, axis]) for axis in (0, 1))
    *edges, bad = kernel.fill_truth_edges(*_buffers(text), heights, widths)
    if bad >= 0:
        raise OddInput(f"the mask of annotation {truth.annotations[bad]['id']} is not plain RLE")
    return tuple(edges)


def _fill_oks(
    ious: np.ndarray,
    pairs: np.ndarray,
    points: np.ndarray,
    groups: np.ndarray,
    first: np.ndarray,
    end: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
) -> None:
    """Object keypoint similarity of every pair, by numpy, in the order of pycocotools' sums."""
    variances = (_OKS_SIGMAS * 2) ** 2
    for group in np.flatnonzero(end > first).tolist():
        found = points[groups[group] : groups[group + 1]]
        table = ious[pairs[group] : pairs[group + 1]].reshape(len(found), -1)
        for column, entry in enumerate(entries[first[group] : end[group]]):
            x, y, seen = np.array(entry["keypoints"]).reshape(-1, 3).T
            dx, dy = found[:, :, 0] - x, found[:, :, 1] - y
            visible = seen > 0
            if not visible.any():
                left, top, width, height = entry["bbox"]
                dx, dy = (
                    np.maximum(0, low - found[:, :, axis]) + np.maximum(0, found[:, :, axis] - high)
                    for axis, low, high in (
                        (0, left - width, left + width * 2),
                        (1, top - height, top + height * 2),
                    )
                )
                visible[:] = True
            error = (dx**2 + dy**2) / variances / (entry["area"] + np.spacing(1)) / 2
            table[:, column] = np.exp(-np.ascontiguousarray(error[:, visible])).sum(axis=1) / visible.sum()


def _accumulate(matched: _Matched, iou_type: str) -> CocoResult:
    from pipeline.results import eval_kernel as kernel

    order = np.lexsort((-matched.scores, matched.categories))
    bounds = np.searchsorted(matched.categories, np.arange(len(matched.category_ids) + 1))
    limits = _rules(iou_type)[1]
    precision, recall = kernel.accumulate(
        matched.outcome[order], matched.rank[order], bounds, matched.num_objects, len(IOU_THRESHOLDS),
        RECALL_THRESHOLDS, limits,
    )  # fmt: skip
    return CocoResult(
        iou_type=iou_type,
        stats=_summarize(precision, recall, iou_type),
        precision=precision,
        recall=recall,
        category_ids=tuple(matched.category_ids.tolist()),
        iou_thresholds=IOU_THRESHOLDS,
        recall_thresholds=RECALL_THRESHOLDS,
        backend="compiled",
    )


def _summarize(precision: np.ndarray, recall: np.ndarray, iou_type: str) -> np.ndarray:
    at_50, at_75 = slice(0, 1), slice(5, 6)
    every = slice(None)
    if iou_type == "keypoints":
        where = [(every, 0), (at_50, 0), (at_75, 0), (every, 1), (every, 2)]
        figures = [array[at][..., area, -1] for array in (precision, recall) for at, area in where]
    else:
        where = [(every, 0), (at_50, 0), (at_75, 0), (every, 1), (every, 2), (every, 3)]
        figures = [precision[at][..., area, -1] for at, area in where]
        figures += [recall[..., 0, limit] for limit in range(3)] + [recall[..., area, -1] for area in (1, 2, 3)]
    return np.array([_mean(values) for values in figures])


def _to_table(
    truth: Truth, results: Sequence[Mapping[str, Any]], iou_type: str
) -> tuple[DetectionTable, np.ndarray | None]:
    """Plain result entries as columns; and their areas where a box beside the mask decides them."""
    first: Mapping[str, Any] = results[0] if results else {}
    boxed = np.array([entry["bbox"] for entry in results], np.float64).reshape(-1, 4) if "bbox" in first else None
    masks = None
    if iou_type == "segm":
        sizes: dict[Any, tuple[Any, Any]] = {i["id"]: (i.get("height"), i.get("width")) for i in truth.images}
        masks = [to_rle(entry["segmentation"], *sizes[entry["image_id"]]) for entry in results]
    table = DetectionTable(
        image_ids=np.array([entry["image_id"] for entry in results], np.int64),
        category_ids=np.array([entry["category_id"] for entry in results], np.int64),
        scores=np.array([entry["score"] for entry in results], np.float64),
        bboxes=np.zeros((len(results), 4)) if boxed is None else boxed,
        counts=None if masks is None else [mask["counts"] for mask in masks],
        sizes=None if masks is None else np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2),
        keypoints=[entry["keypoints"] for entry in results] if iou_type == "keypoints" else None,
    )
    return table, None if boxed is None else boxed[:, 2] * boxed[:, 3]


def to_text(counts: Any) -> pa.Array:
    """RLE strings (text or bytes; a sequence, a pandas column or Arrow) as one Arrow array of large strings."""
    if isinstance(counts, pa.ChunkedArray):
        counts = counts.combine_chunks()
    if not isinstance(counts, pa.Array):
        if not hasattr(counts, "dtype"):
            counts = [one.decode("latin-1") if isinstance(one, bytes) else one for one in counts]
        counts = pa.array(counts, pa.large_string())
    return counts if counts.type == pa.large_string() else counts.cast(pa.large_string())


def _buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The characters, uint8, and where each string begins, int64 [N + 1]."""
    if not len(text):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, characters = text.buffers()
    places = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return np.frombuffer(characters, np.uint8) if characters is not None else np.zeros(0, np.uint8), places


def _by_pycocotools(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> CocoResult:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _silence():
        truth = COCO()
        # The evaluation writes into its entries; the caller's stay as they are.
        truth.dataset = {**content, "annotations": [dict(entry) for entry in content.get("annotations", [])]}
        truth.createIndex()
        if results:
            found = truth.loadRes([dict(entry) for entry in results])
        else:
            found = COCO()
            found.dataset = {**content, "annotations": []}
            found.createIndex()
        evaluator = COCOeval(truth, found, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    params = evaluator.params
    return CocoResult(
        iou_type=iou_type,
        stats=np.asarray(evaluator.stats, np.float64),
        precision=evaluator.eval["precision"],
        recall=evaluator.eval["recall"],
        category_ids=tuple(int(i) for i in params.catIds),
        iou_thresholds=np.asarray(params.iouThrs),
        recall_thresholds=np.asarray(params.recThrs),
        backend="pycocotools",
    )


@contextlib.contextmanager
def _silence() -> Any:
    """pycocotools prints its progress; a library does not."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def _mean(values: np.ndarray) -> float:
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else -1.0
