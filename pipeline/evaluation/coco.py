"""COCO's average precision and recall: a fast compiled evaluator, and pycocotools for input that it does not take.

Both give the same figures to the last digit; pycocotools is the reference. The compiled evaluator works on flat arrays.

Source: Lin et al., Microsoft COCO (2014), section 5, as `pycocotools.cocoeval` computes it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth, to_rle
from pipeline.evaluation.input_check import OddInput, are_plain_results, is_plain_truth
from pipeline.evaluation.iou import MOST_OF_A_CLASS, Overlaps, find_overlaps, in_threads

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
    """The figures of COCO's evaluation for one kind of IoU.

    Attributes:
        iou_type: bbox, segm or keypoints.
        stats: float64 [12] (10 for keypoints), COCO's figures in its order (`names`); -1 where no object counts.
        precision: float64 [T, R, K, A, M] by IoU threshold, recall threshold, category, range of area, and number of
            detections of an image; -1 where no object counts.
        recall: float64 [T, K, A, M], likewise.
        category_ids: the K categories.
        iou_thresholds: float64 [T].
        recall_thresholds: float64 [R].
        backend: the evaluator that computed them, compiled or pycocotools.
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
        """AP, AP50, AP75 and AR100 (AR for keypoints) by category id: over all areas, with as many detections of an
        image as are evaluated; -1 for a category without objects."""
        figures = {}
        for index, category_id in enumerate(self.category_ids):
            precision, recall = self.precision[:, :, index, 0, -1], self.recall[:, index, 0, -1]
            figures[category_id] = {
                "AP": _mean(precision),
                **{
                    name: _mean(precision[np.isclose(self.iou_thresholds, threshold)])
                    for name, threshold in (("AP50", 0.5), ("AP75", 0.75))
                },
                "AR" if self.iou_type == "keypoints" else "AR100": _mean(recall),
            }
        return figures

    def pr_curve(self, category_id: int | None = None, iou_threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """The precision-recall curve at one IoU threshold.

        Args:
            category_id: the category; None: the mean over categories with objects.

        Returns:
            Recall and interpolated precision, float64 [R] each. Precision is NaN where there are no objects.

        Raises:
            ValueError: a threshold that was not evaluated, or an unknown category.
        """
        matching = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold))
        if not len(matching):
            raise ValueError(f"iou_threshold {iou_threshold} was not evaluated; {self.iou_thresholds.tolist()} were")
        curves = self.precision[matching[0], :, :, 0, -1]
        if category_id is not None:
            if category_id not in self.category_ids:
                raise ValueError(f"there is no category {category_id}; there are {list(self.category_ids)}")
            curves = curves[:, [self.category_ids.index(category_id)]]
        curves = curves[:, (curves > -1).any(axis=0)]
        mean = curves.mean(axis=1) if curves.shape[1] else np.full(len(self.recall_thresholds), np.nan)
        return self.recall_thresholds, mean


def overlaps_for(
    truth: Truth, detections: DetectionTable, iou_type: str, *, backend: str = "auto", areas: np.ndarray | None = None
) -> Overlaps | None:
    """The IoU that the compiled evaluator needs, or None where pycocotools is to evaluate.

    That is so where it is asked for, and with `auto` where the input is odd.

    Args:
        iou_type: bbox, segm or keypoints.
        backend: see `evaluate_table`.
        areas: see `find_overlaps`.

    Raises:
        ValueError: see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    if backend == "pycocotools":
        return None
    try:
        return find_overlaps(truth, detections, iou_type, areas)
    except OddInput:
        if backend == "compiled":
            raise
        return None


def evaluate_table(
    truth: Truth,
    detections: DetectionTable,
    iou_type: str,
    *,
    backend: str = "auto",
    overlaps: Overlaps | None = None,
) -> CocoResult:
    """COCO's evaluation of a table of detections.

    Args:
        iou_type: bbox, segm or keypoints.
        backend: compiled, pycocotools, or auto: compiled where the input is plain, else pycocotools.
        overlaps: those of the same detections and truth, where they are known. Then the compiled evaluator is used,
            whatever `backend` is.

    Raises:
        ValueError: an unknown iou_type or backend, detections without what the kind of IoU needs, or odd input with
            `compiled`.
    """
    if overlaps is None:
        overlaps = overlaps_for(truth, detections, iou_type, backend=backend)
    if overlaps is None:
        return _by_pycocotools(truth.content, detections.to_results(iou_type), iou_type)
    return _accumulate(_match(truth, detections, overlaps, iou_type), iou_type)


def evaluate_results(
    truth: Truth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str, *, backend: str = "auto"
) -> CocoResult:
    """COCO's evaluation of result entries, exactly as pycocotools does it.

    Args:
        truth: the ground truth, or a COCO JSON object.
        results: COCO result entries. None give figures of 0, or -1 where there are no objects.
        iou_type: bbox, segm or keypoints.
        backend: see `evaluate_table`.

    Raises:
        KeyError, AssertionError, ...: what pycocotools raises for entries without a needed field, results of unknown
            images, and the like. `auto` raises the same, because odd input goes to pycocotools.
        ValueError: see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    _check_choice("backend", backend, BACKENDS)
    content = truth.content if isinstance(truth, Truth) else truth
    if backend != "pycocotools" and is_plain_truth(content, iou_type) and are_plain_results(content, results, iou_type):
        plain_truth = Truth(content["images"], content["annotations"], content["categories"])
        table, areas = _to_table(plain_truth, results, iou_type)
        overlaps = overlaps_for(plain_truth, table, iou_type, backend=backend, areas=areas)
        if overlaps is not None:
            return _accumulate(_match(plain_truth, table, overlaps, iou_type), iou_type)
    elif backend == "compiled":
        raise OddInput("the input is not plain; backend auto or pycocotools takes it")
    return _by_pycocotools(content, results, iou_type)


def evaluate_part(
    truth: Truth, detections: DetectionTable, iou_type: str, *, overlaps: Overlaps | None = None
) -> bytes:
    """The matches of a share of the images as bytes, which `merge_parts` puts together.

    Args:
        truth: the share's images and annotations (`Truth.only`), with all categories.
        detections: the detections on these images.
        iou_type: bbox, segm or keypoints.
        overlaps: see `evaluate_table`.

    Returns:
        A NumPy archive (npz), to be sent by a worker.

    Raises:
        ValueError: an unknown iou_type, or odd input, see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    overlaps = find_overlaps(truth, detections, iou_type) if overlaps is None else overlaps
    sink = io.BytesIO()
    np.savez(sink, iou_type=np.array(iou_type), **_match(truth, detections, overlaps, iou_type).__dict__)
    return sink.getvalue()


def merge_parts(parts: Iterable[bytes], iou_type: str) -> CocoResult:
    """The figures of all shares together: exactly those of one evaluation over all images, in any order of the parts.

    Args:
        parts: what `evaluate_part` returned for each share.

    Raises:
        ValueError: no part, or parts of different categories or of another kind of IoU.
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


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_AREAS_PX = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])


def _rules(iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of area in square pixels, float64 [A, 2], and limits of detections of an image and class, int64 [M]."""
    if iou_type == "keypoints":
        return _AREAS_PX[[0, 2, 3]], np.array([MOST_OF_A_CLASS[iou_type]])
    return _AREAS_PX, np.array([1, 10, MOST_OF_A_CLASS[iou_type]])


@dataclass(frozen=True)
class _Matched:
    """The outcome of matching for each detection, sorted by category, image and rank.

    No row depends on other images, so outcomes of shares of the images can be concatenated.

    Attributes:
        image_ids: int64 [N].
        categories: int64 [N], indices into `category_ids`.
        rank: int64 [N], within image and class, 0 for the best.
        scores: float64 [N].
        outcome: uint32 [N, A], see `kernel.match_groups`.
        num_objects: int64 [K, A], the number of annotations that count, by category and range of area.
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


def _match(truth: Truth, table: DetectionTable, overlaps: Overlaps, iou_type: str) -> _Matched:
    """COCO's matching at all its thresholds and ranges of area."""
    from pipeline.evaluation import kernel

    ranges = _rules(iou_type)[0]
    areas = np.array([entry["area"] for entry in truth.annotations], np.float64)
    left_out = np.array([overlaps.ignored | (areas < low) | (areas > high) for low, high in ranges])
    outcome = np.zeros((len(overlaps.rows), len(ranges)), np.uint32)

    def fill(begin: int, stop: int) -> None:
        groups, bounds = slice(begin, stop), slice(begin, stop + 1)
        kernel.match_groups(
            outcome, overlaps.ious, overlaps.pairs[bounds], overlaps.areas, overlaps.starts[bounds],
            overlaps.first[groups], overlaps.end[groups], overlaps.truths, truth.is_crowd, left_out, ranges,
            IOU_THRESHOLDS,
        )  # fmt: skip

    in_threads(fill, overlaps.starts)
    truth_categories = np.searchsorted(overlaps.category_ids, truth.category_ids)
    num_objects = np.zeros((len(overlaps.category_ids), len(ranges)), np.int64)
    for index, is_left_out in enumerate(left_out):
        num_objects[:, index] = np.bincount(truth_categories[~is_left_out], minlength=len(num_objects))
    return _Matched(
        image_ids=overlaps.of_rows(overlaps.image_ids[overlaps.images]),
        categories=overlaps.of_rows(overlaps.categories),
        rank=overlaps.rank,
        scores=table.scores[overlaps.rows],
        outcome=outcome,
        num_objects=num_objects,
        category_ids=overlaps.category_ids,
    )


def _accumulate(matched: _Matched, iou_type: str) -> CocoResult:
    """COCO's precision-recall curves and figures from the outcome of matching."""
    from pipeline.evaluation import kernel

    bounds = np.searchsorted(matched.categories, np.arange(len(matched.category_ids) + 1))
    order = np.concatenate(
        [
            begin + np.argsort(-matched.scores[begin:end], kind="stable")
            for begin, end in itertools.pairwise(bounds.tolist())
        ]
    )
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
    """COCO's figures in its order: means over IoU thresholds and ranges of area."""
    at_50, at_75 = slice(0, 1), slice(5, 6)
    every = slice(None)
    if iou_type == "keypoints":
        selections = [(every, 0), (at_50, 0), (at_75, 0), (every, 1), (every, 2)]
        figures = [array[at][..., area, -1] for array in (precision, recall) for at, area in selections]
    else:
        selections = [(every, 0), (at_50, 0), (at_75, 0), (every, 1), (every, 2), (every, 3)]
        figures = [precision[at][..., area, -1] for at, area in selections]
        figures += [recall[..., 0, limit] for limit in range(3)] + [recall[..., area, -1] for area in (1, 2, 3)]
    return np.array([_mean(values) for values in figures])


def _to_table(
    truth: Truth, results: Sequence[Mapping[str, Any]], iou_type: str
) -> tuple[DetectionTable, np.ndarray | None]:
    """Plain result entries as a table; and their areas where they have boxes, from which pycocotools takes the area."""
    first: Mapping[str, Any] = results[0] if results else {}
    bboxes = np.array([entry["bbox"] for entry in results], np.float64).reshape(-1, 4) if "bbox" in first else None
    masks = None
    if iou_type == "segm":
        sizes: dict[Any, tuple[Any, Any]] = {i["id"]: (i.get("height"), i.get("width")) for i in truth.images}
        masks = [to_rle(entry["segmentation"], *sizes[entry["image_id"]]) for entry in results]
    table = DetectionTable(
        image_ids=np.array([entry["image_id"] for entry in results], np.int64),
        category_ids=np.array([entry["category_id"] for entry in results], np.int64),
        scores=np.array([entry["score"] for entry in results], np.float64),
        bboxes=np.zeros((len(results), 4)) if bboxes is None else bboxes,
        counts=None if masks is None else [mask["counts"] for mask in masks],
        sizes=None if masks is None else np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2),
        keypoints=[entry["keypoints"] for entry in results] if iou_type == "keypoints" else None,
    )
    return table, None if bboxes is None else bboxes[:, 2] * bboxes[:, 3]


def _by_pycocotools(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> CocoResult:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _silence():
        truth = COCO()
        # pycocotools writes into the entries it evaluates, so it gets copies.
        truth.dataset = {**content, "annotations": [dict(entry) for entry in content.get("annotations", [])]}
        truth.createIndex()
        if results:
            detections = truth.loadRes([dict(entry) for entry in results])
        else:
            detections = COCO()
            detections.dataset = {**content, "annotations": []}
            detections.createIndex()
        evaluator = COCOeval(truth, detections, iou_type)
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
def _silence() -> Iterator[None]:
    """Discards what pycocotools prints about its progress."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def _mean(values: np.ndarray) -> float:
    """The mean without -1, or -1 where there is nothing else."""
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else -1.0
