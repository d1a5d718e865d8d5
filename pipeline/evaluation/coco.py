"""COCO's average precision and recall: compiled matching and accumulation over flat arrays, and pycocotools to compare.

Both give the same figures to the last digit; pycocotools is the reference.

Source: Lin et al., Microsoft COCO (2014), section 5, as `pycocotools.cocoeval` computes it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import Overlaps, in_threads
from pipeline.evaluation.kernel_types import Groups

BACKENDS = ("auto", "compiled", "pycocotools")
STAT_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
KEYPOINT_STAT_NAMES = (
    "AP", "AP50", "AP75", "AP_medium", "AP_large",
    "AR", "AR50", "AR75", "AR_medium", "AR_large",
)  # fmt: skip
MAX_DETECTIONS = 100
"""How many detections of an image and class COCO's AP counts at most: those with the best scores."""
_MAX_KEYPOINT_DETECTIONS = 20
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_AREAS_PX = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])


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
        max_detections: of an image and class that were counted at most.
        backend: the evaluator that computed them, compiled or pycocotools.
    """

    iou_type: str
    stats: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    category_ids: tuple[int, ...]
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    max_detections: int
    backend: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of `stats`; AR100 has the number of detections that were counted at most in its name."""
        names = KEYPOINT_STAT_NAMES if self.iou_type == "keypoints" else STAT_NAMES
        return tuple(f"AR{self.max_detections}" if name == "AR100" else name for name in names)

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
                "AR" if self.iou_type == "keypoints" else f"AR{self.max_detections}": _mean(recall),
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


@dataclass(frozen=True)
class CocoMatches:
    """COCO's matching of all detections, at all its thresholds and in all its ranges of area.

    No detection depends on other images. So the matches of parts of the images can be joined, and those of some images
    be taken, or taken several times.

    Attributes:
        iou_type: bbox, segm or keypoints.
        category_ids: int64 [K], sorted.
        image_ids: int64 [I], sorted.
        images, categories: int64 [N], indices into `image_ids` and `category_ids`; detections are sorted by category,
            image and rank.
        rank: int64 [N], within image and class, 0 for the best.
        scores: float64 [N].
        outcome: uint32 [N, A], see `kernel.match_groups`.
        object_images, object_categories: int64 [G], likewise, of the annotations.
        is_counted: bool [G, A], whether each annotation counts in each range of area.
        num_unreadable: see `Overlaps`.
    """

    iou_type: str
    category_ids: np.ndarray
    image_ids: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    rank: np.ndarray
    scores: np.ndarray
    outcome: np.ndarray
    object_images: np.ndarray
    object_categories: np.ndarray
    is_counted: np.ndarray
    num_unreadable: int

    def result(self, max_detections: int = MAX_DETECTIONS, weights: np.ndarray | None = None) -> CocoResult:
        """COCO's figures.

        Args:
            max_detections: how many detections of an image and class count at most (of keypoints at most 20).
            weights: int64 [I], how often each image counts; None: once. A weight of 2 equals two copies of the image.
        """
        limit = self.limit(max_detections)
        limits = np.array([limit]) if self.iou_type == "keypoints" else np.minimum([1, 10, limit], limit)
        precision, recall = self._accumulate(slice(None), limits, weights)
        return CocoResult(
            iou_type=self.iou_type,
            stats=_summarize(precision, recall, self.iou_type),
            precision=precision,
            recall=recall,
            category_ids=tuple(self.category_ids.tolist()),
            iou_thresholds=IOU_THRESHOLDS,
            recall_thresholds=RECALL_THRESHOLDS,
            max_detections=limit,
            backend="compiled",
        )

    def limit(self, max_detections: int) -> int:
        """How many detections of an image and class AP counts at most; of keypoints COCO counts at most 20."""
        return min(max_detections, _MAX_KEYPOINT_DETECTIONS) if self.iou_type == "keypoints" else max_detections

    def average_precision(
        self, max_detections: int = MAX_DETECTIONS, weights: np.ndarray | None = None
    ) -> dict[int | None, float]:
        """COCO's AP (all areas) by category id, and the mean under None; NaN without objects. `result` has the rest.

        Args:
            max_detections, weights: as for `result`.
        """
        precision = self._accumulate(slice(1), np.array([max_detections]), weights)[0][:, :, :, 0, 0]
        figures: dict[int | None, float] = {None: _mean(precision)}
        figures |= {number: _mean(precision[:, :, k]) for k, number in enumerate(self.category_ids.tolist())}
        return {number: float("nan") if value == -1 else value for number, value in figures.items()}

    @cached_property
    def _best_first(self) -> tuple[np.ndarray, np.ndarray]:
        """The detections by category, best score first (int64 [N]), and where each category begins (int64 [K + 1])."""
        bounds = np.searchsorted(self.categories, np.arange(len(self.category_ids) + 1))
        parts = [
            begin + np.argsort(-self.scores[begin:end], kind="stable")
            for begin, end in itertools.pairwise(bounds.tolist())
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts]), bounds

    def _accumulate(
        self, areas: slice, limits: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall in some of the ranges of area, see `kernel.accumulate`."""
        from pipeline.evaluation import kernel

        weights = np.ones(len(self.image_ids), np.int64) if weights is None else weights
        order, bounds = self._best_first
        is_counted = self.is_counted[:, areas]
        num_objects = np.zeros((len(self.category_ids), is_counted.shape[1]), np.int64)
        np.add.at(num_objects, self.object_categories, is_counted * weights[self.object_images, None])
        return kernel.accumulate(
            np.ascontiguousarray(self.outcome[order, areas]), self.rank[order], weights[self.images[order]], bounds,
            num_objects, len(IOU_THRESHOLDS), RECALL_THRESHOLDS, limits.astype(np.int64),
        )  # fmt: skip


def match_coco(truth: Truth, table: DetectionTable, overlaps: Overlaps) -> CocoMatches:
    """COCO's matching; `overlaps` are those of the same detections and truth."""
    from pipeline.evaluation import kernel

    ranges = _AREAS_PX[[0, 2, 3]] if overlaps.iou_type == "keypoints" else _AREAS_PX
    areas = truth.areas
    left_out = np.array([overlaps.ignored | (areas < low) | (areas > high) for low, high in ranges])
    outcome = np.zeros((len(overlaps.groups.rows), len(ranges)), np.uint32)

    def fill(part: Groups) -> None:
        kernel.match_groups(
            outcome, overlaps.ious, overlaps.areas, part, overlaps.regions, left_out, ranges, IOU_THRESHOLDS
        )

    in_threads(fill, overlaps.groups)
    return CocoMatches(
        iou_type=overlaps.iou_type,
        category_ids=overlaps.category_ids,
        image_ids=overlaps.image_ids,
        images=overlaps.of_rows(overlaps.images),
        categories=overlaps.of_rows(overlaps.categories),
        rank=overlaps.rank,
        scores=table.scores[overlaps.groups.rows],
        outcome=outcome,
        object_images=np.searchsorted(overlaps.image_ids, truth.annotations.image_ids),
        object_categories=np.searchsorted(overlaps.category_ids, truth.annotations.category_ids),
        is_counted=~left_out.T,
        num_unreadable=overlaps.num_unreadable,
    )


def join_matches(parts: Sequence[CocoMatches]) -> CocoMatches:
    """The matches of parts of the images as those of all: exactly those of one matching, in any order of the parts.

    Args:
        parts: of different images and the same categories and kind of IoU; at least one.
    """
    image_ids = np.sort(np.concatenate([part.image_ids for part in parts]))

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def images(name: str) -> np.ndarray:
        return np.concatenate([np.searchsorted(image_ids, part.image_ids[getattr(part, name)]) for part in parts])

    order = np.lexsort((column("rank"), images("images"), column("categories")))
    return CocoMatches(
        iou_type=parts[0].iou_type,
        category_ids=parts[0].category_ids,
        image_ids=image_ids,
        images=images("images")[order],
        categories=column("categories")[order],
        rank=column("rank")[order],
        scores=column("scores")[order],
        outcome=column("outcome")[order],
        object_images=images("object_images"),
        object_categories=column("object_categories"),
        is_counted=column("is_counted"),
        num_unreadable=sum(part.num_unreadable for part in parts),
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


def evaluate_by_pycocotools(
    truth: Truth, table: DetectionTable, overlaps: Overlaps, max_detections: int = MAX_DETECTIONS
) -> CocoResult:
    """The figures of `CocoMatches.result` by pycocotools itself, from the same checked annotations and detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    iou_type = overlaps.iou_type
    content = _to_coco_json(truth, overlaps)
    results = table.take(np.sort(overlaps.groups.rows)).to_results(iou_type)
    with _silence():
        coco_truth, coco_detections = COCO(), COCO()
        coco_truth.dataset = content
        coco_truth.createIndex()
        if results:
            coco_detections = coco_truth.loadRes(results)
        else:
            coco_detections.dataset = {**content, "annotations": []}
            coco_detections.createIndex()
        evaluator = COCOeval(coco_truth, coco_detections, iou_type)
        evaluator.params.maxDets = [min(limit, max_detections) for limit in evaluator.params.maxDets[:-1]]
        most = _MAX_KEYPOINT_DETECTIONS if iou_type == "keypoints" else max_detections
        evaluator.params.maxDets += [min(most, max_detections)]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    return CocoResult(
        iou_type=iou_type,
        stats=_summarize(precision, recall, iou_type),
        precision=precision,
        recall=recall,
        category_ids=tuple(int(i) for i in evaluator.params.catIds),
        iou_thresholds=np.asarray(evaluator.params.iouThrs),
        recall_thresholds=np.asarray(evaluator.params.recThrs),
        max_detections=int(evaluator.params.maxDets[-1]),
        backend="pycocotools",
    )


def _to_coco_json(truth: Truth, overlaps: Overlaps) -> dict[str, object]:
    """The truth as pycocotools takes it: annotation ids from 1, masks as RLE, ignore regions as crowd regions."""
    annotations = truth.annotations
    sizes = truth.image_sizes[truth.image_index].tolist()
    entries: list[dict[str, object]] = [
        {"id": index + 1, "image_id": image_id, "category_id": category_id, "area": area, "bbox": box, "iscrowd": crowd}
        for index, (image_id, category_id, area, box, crowd) in enumerate(
            zip(
                annotations.image_ids.tolist(),
                annotations.category_ids.tolist(),
                truth.areas.tolist(),
                annotations.boxes.tolist(),
                overlaps.regions.astype(int).tolist(),
                strict=True,
            )
        )
    ]
    if overlaps.iou_type == "segm":
        for entry, size, counts in zip(entries, sizes, truth.rles, strict=True):
            entry["segmentation"] = {"size": size, "counts": counts}
    if overlaps.iou_type == "keypoints":
        labelled = annotations.num_keypoints.tolist()
        for entry, keypoints, num in zip(entries, annotations.keypoints, labelled, strict=True):
            entry |= {"keypoints": keypoints or [0.0] * 51, "num_keypoints": num}
    images = zip(truth.image_ids.tolist(), truth.image_sizes.tolist(), strict=True)
    return {
        "images": [{"id": image_id, "height": height, "width": width} for image_id, (height, width) in images],
        "annotations": entries,
        "categories": [{"id": number, "name": name} for number, name in truth.names.items()],
    }


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discards what pycocotools prints about its progress."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _mean(values: np.ndarray) -> float:
    """The mean without -1, or -1 where there is nothing else."""
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else -1.0
