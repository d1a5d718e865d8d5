"""COCO's average precision by two evaluators that agree to the last digit: hotcoco (fast) and pycocotools (the
reference, and what decides wherever an input is odd).

Source: Lin et al., Microsoft COCO (2014), section 5, as `pycocotools.cocoeval` computes it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.results.truth import Truth

IOU_TYPES = ("bbox", "segm", "keypoints")
BACKENDS = ("auto", "hotcoco", "pycocotools")
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
        counts: N compressed RLE strings, or None.
        sizes: int64 [N, 2], height and width of the masks.
        keypoints: N flat lists of x, y, v triples, or None.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    bboxes: np.ndarray
    counts: Sequence[str] | None = None
    sizes: np.ndarray | None = None
    keypoints: Sequence[Sequence[float]] | None = None

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
            None if self.counts is None else [self.counts[i] for i in listed],
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
        return [{"size": sizes[at], "counts": counts} for at, counts in zip(places.tolist(), self.counts, strict=True)]

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
        backend: hotcoco, pycocotools, or auto: hotcoco where it is installed and the truth is plain.

    Raises:
        ValueError: an unknown iou_type or backend, or detections without what the kind of IoU needs.
        ImportError: hotcoco is asked for and not installed.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    fast = backend == "hotcoco" or (
        backend == "auto"
        and has_hotcoco()
        and np.isfinite(detections.scores).all()
        and is_plain(truth.content, [], iou_type)
    )
    if fast and iou_type != "keypoints":
        return _table_by_hotcoco(truth, detections, iou_type)
    return evaluate_results(truth, detections.to_results(iou_type), iou_type, backend=backend)


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
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    content = truth.content if isinstance(truth, Truth) else truth
    if backend == "hotcoco" or (backend == "auto" and has_hotcoco() and is_plain(content, results, iou_type)):
        return _by_hotcoco(content, results, iou_type)
    return _by_pycocotools(content, results, iou_type)


def evaluate_part(truth: Truth, detections: DetectionTable, iou_type: str) -> bytes:
    """What a share of the images contributes, to be sent home by a worker and merged there.

    Args:
        truth: the share's images and annotations (`Truth.only`), with all categories.
        detections: those on these images.

    Raises:
        ValueError: an unknown iou_type.
        ImportError: hotcoco is not installed.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    import hotcoco

    part = hotcoco.StreamingEval(truth.categories, iou_type)
    part.update(truth.images, truth.annotations, detections.to_results(iou_type))
    return part.to_bytes()


def merge_parts(parts: Iterable[bytes], iou_type: str) -> CocoResult:
    """The figures of all shares together, exactly those of one evaluation over all images, whatever the order.

    Raises:
        ValueError: no part, or parts of other categories or of another kind of IoU.
    """
    import hotcoco

    merged = hotcoco.StreamingEval.merge(hotcoco.StreamingEval.from_bytes(part) for part in parts)
    return read_hotcoco(merged.finalize(), iou_type, is_matched=True)


def has_hotcoco() -> bool:
    """Whether the fast evaluator can be imported."""
    try:
        import hotcoco  # noqa: F401
    except ImportError:
        return False
    return True


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
    if kinds and next(iter(kinds)) & {"id", "area", "iscrowd", "caption", "num_keypoints", "ignore"}:
        return False
    for entry in results:
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_ids(entries: Sequence[Mapping[str, Any]]) -> set[int] | None:
    ids = {entry.get("id") for entry in entries}
    if len(ids) < len(entries) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        return None
    return ids  # type: ignore[return-value]


def _by_hotcoco(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> CocoResult:
    import hotcoco

    truth = hotcoco.COCO(dict(content))
    found = truth.load_res([dict(entry) for entry in results]) if results else _without_annotations(truth)
    return read_hotcoco(hotcoco.COCOeval(truth, found, iou_type), iou_type)


def _table_by_hotcoco(truth: Truth, detections: DetectionTable, iou_type: str) -> CocoResult:
    """As `_by_hotcoco`, without a dictionary for each detection."""
    import hotcoco

    known = hotcoco.COCO(truth.content)
    if not len(detections):
        return read_hotcoco(hotcoco.COCOeval(known, _without_annotations(known), iou_type), iou_type)
    columns = (detections.image_ids, detections.bboxes, detections.scores, detections.category_ids)
    rows = np.column_stack(columns).astype(np.float64)
    if iou_type == "bbox":
        return read_hotcoco(hotcoco.COCOeval(known, known.load_res(rows), iou_type), iou_type)
    with no_collection():
        masks: list[Any] = detections.to_rles()
    found = known.load_res(rows, segmentation=masks)
    # A row with a box would count with its box's area; a mask's own decides whether it is small, medium or large.
    areas = np.asarray(hotcoco.mask.area(masks), np.float64)
    found.update_anns(ids=np.arange(1, len(rows) + 1), area=areas)
    del masks, rows
    return read_hotcoco(hotcoco.COCOeval(known, found, iou_type), iou_type)


def _without_annotations(truth: Any) -> Any:
    import hotcoco

    content = truth.dataset
    return hotcoco.COCO({**content, "annotations": []})


def read_hotcoco(evaluator: Any, iou_type: str, *, is_matched: bool = False) -> CocoResult:
    """Runs a hotcoco evaluator, from the matching on or after it, and takes its figures over."""
    with _silence():
        if not is_matched:
            evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    params, arrays = evaluator.params, evaluator.eval
    return CocoResult(
        iou_type=iou_type,
        stats=np.asarray(evaluator.stats, np.float64),
        precision=np.asarray(arrays["precision"], np.float64),
        recall=np.asarray(arrays["recall"], np.float64),
        category_ids=tuple(int(i) for i in params.cat_ids),
        iou_thresholds=np.asarray(params.iou_thrs, np.float64),
        recall_thresholds=np.asarray(params.rec_thrs, np.float64),
        backend="hotcoco",
    )


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
def no_collection() -> Any:
    """Building half a million dictionaries makes Python look for garbage among them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _silence() -> Any:
    """Both evaluators print their progress; a library does not."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def _mean(values: np.ndarray) -> float:
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else -1.0
