"""COCO's average precision by two evaluators that agree to the last digit: compiled kernels over flat arrays (fast),
and pycocotools (the reference, and what decides wherever an input is odd).

Source: Lin et al., Microsoft COCO (2014), section 5, as `pycocotools.cocoeval` computes it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
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


def overlaps_for(
    truth: Truth, detections: DetectionTable, iou_type: str, *, backend: str = "auto", areas: np.ndarray | None = None
) -> Overlaps | None:
    """What the compiled evaluator works on, or None where pycocotools is asked for or has to decide.

    Args:
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
        backend: compiled, pycocotools, or auto: compiled where the input is plain.
        overlaps: those of the same detections and truth, where they are known; then `backend` is not asked.

    Raises:
        ValueError: an unknown iou_type or backend, detections without what the kind of IoU needs, or input that is odd
            where `compiled` is asked for.
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
    if backend != "pycocotools" and is_plain_truth(content, iou_type) and are_plain_results(content, results, iou_type):
        known = Truth(content["images"], content["annotations"], content["categories"])
        table, areas = _to_table(known, results, iou_type)
        overlaps = overlaps_for(known, table, iou_type, backend=backend, areas=areas)
        if overlaps is not None:
            return _accumulate(_match(known, table, overlaps, iou_type), iou_type)
    elif backend == "compiled":
        raise OddInput("the input is not plain; backend auto or pycocotools takes it")
    return _by_pycocotools(content, results, iou_type)


def evaluate_part(
    truth: Truth, detections: DetectionTable, iou_type: str, *, overlaps: Overlaps | None = None
) -> bytes:
    """What a share of the images contributes, to be sent home by a worker and merged there.

    Args:
        truth: the share's images and annotations (`Truth.only`), with all categories.
        detections: those on these images.
        overlaps: see `evaluate_table`.

    Raises:
        ValueError: an unknown iou_type, or odd input, see `evaluate_table`.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    overlaps = find_overlaps(truth, detections, iou_type) if overlaps is None else overlaps
    sink = io.BytesIO()
    np.savez(sink, iou_type=np.array(iou_type), **_match(truth, detections, overlaps, iou_type).__dict__)
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


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_AREAS_PX = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])


def _rules(iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of area, float64 [A, 2], and most detections of an image and class, int64 [M]."""
    if iou_type == "keypoints":
        return _AREAS_PX[[0, 2, 3]], np.array([MOST_OF_A_CLASS[iou_type]])
    return _AREAS_PX, np.array([1, 10, MOST_OF_A_CLASS[iou_type]])


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


def _match(truth: Truth, table: DetectionTable, overlaps: Overlaps, iou_type: str) -> _Matched:
    """COCO's matching at all its thresholds and ranges of area."""
    from pipeline.evaluation import kernel

    ranges = _rules(iou_type)[0]
    areas = np.array([entry["area"] for entry in truth.annotations], np.float64)
    left_out = np.array([overlaps.ignored | (areas < low) | (areas > high) for low, high in ranges])
    outcome = np.zeros((len(overlaps.rows), len(ranges)), np.uint32)

    def fill(begin: int, stop: int) -> None:
        mine, more = slice(begin, stop), slice(begin, stop + 1)
        kernel.match_groups(
            outcome, overlaps.ious, overlaps.pairs[more], overlaps.areas, overlaps.starts[more], overlaps.first[mine],
            overlaps.end[mine], overlaps.truths, truth.is_crowd, left_out, ranges, IOU_THRESHOLDS,
        )  # fmt: skip

    in_threads(fill, overlaps.starts)
    of_truth = np.searchsorted(overlaps.category_ids, truth.category_ids)
    num_objects = np.zeros((len(overlaps.category_ids), len(ranges)), np.int64)
    for place, out in enumerate(left_out):
        num_objects[:, place] = np.bincount(of_truth[~out], minlength=len(num_objects))
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
