"""Validation during a training: every worker predicts a share of the set, rank 0 computes AP while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from jobs.training.history import ValidationFigures
from jobs.training.sets import image_names, validation_truth
from jobs.training.validation_run import MASK_THRESHOLD
from model.categories import Category
from model.dense_parts import DenseParts
from model.inference.predictor import Predictor
from model.network import MaskRCNN
from model.spec import ModelSpec
from model.training.train_step import ALONE, WorkerRank
from pipeline.bulk.encode import ImageResult, encode_instances
from pipeline.dataset.photos import UnusablePhoto, load_photo
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet
from pipeline.plan import PlannedImage
from pipeline.schema import OK

if TYPE_CHECKING:
    from pipeline.evaluation.ground_truth import Truth

# Columns that a validation adds to metrics.parquet: column -> (kind of IoU, figure of pipeline.evaluation.metrics).
FIGURES = {
    "segm_AP": ("segm", "AP"),
    "segm_AP50": ("segm", "AP50"),
    "segm_AP75": ("segm", "AP75"),
    "bbox_AP": ("bbox", "AP"),
    "bbox_AP50": ("bbox", "AP50"),
    "bbox_AP75": ("bbox", "AP75"),
    "mean_iou": ("segm", "mean_iou"),
}
# The same of each class, by the columns of classes.parquet.
CLASS_FIGURES = {name: figure for name, figure in FIGURES.items() if name != "mean_iou"}
_BATCH_SIZE = 4  # images of one forward pass, at most
_Photo = tuple[PlannedImage, np.ndarray | str]
"""An image and its pixels, as `pipeline.dataset.photos.load_photo` gives them, or why it cannot be read."""


class Validation:
    """Measures a network on a validation set. A context manager, since it holds a thread.

    Args:
        annotated: The validation set, under the model's class map.
        categories: The model's class map.
        spec: The network's spec.
        device: Where the network predicts.
        worker: Its share is every world_size-th image, starting with image number `rank`.
        num_processes: Processes that read images; 0 reads them in this process, between predictions.

    Raises:
        ValueError: See `jobs.training.sets.validation_truth`.
    """

    def __init__(
        self,
        annotated: AnnotatedSet,
        categories: Sequence[Category],
        spec: ModelSpec,
        *,
        device: torch.device,
        worker: WorkerRank = ALONE,
        num_processes: int = 0,
    ) -> None:
        self.annotated = annotated
        self.categories = tuple(categories)
        self.spec = spec
        self.device = device
        self.worker = worker
        self.num_processes = num_processes
        self.truth = validation_truth(annotated)
        names = image_names(annotated.images)
        self._planned = [PlannedImage(name, image.path.uri) for name, image in zip(names, annotated.images)]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validation")

    def __enter__(self) -> Validation:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def predict(
        self,
        model: MaskRCNN,
        parts: DenseParts | None = None,
        on_progress: Callable[[int], None] = lambda num_done: None,
    ) -> list[ImageResult]:
        """Predicts this worker's share: a result for each image, in no order. The network is not changed.

        Images that cannot be read have the status `unreadable`, and their objects count as missed.

        Args:
            model: The network.
            parts: What runs its dense parts, see `Predictor`.
            on_progress: Called with the number of images done.
        """
        predictor, results = Predictor(model, self.spec, device=self.device, parts=parts), list[ImageResult]()
        for batch in self._batches(predictor, results):
            results += self._predict(predictor, batch)
            on_progress(len(results))
        return results

    def evaluate_later(
        self, shares: Sequence[list[ImageResult]], write: Callable[[list[ImageResult]], object] | None = None
    ) -> Future[ValidationFigures]:
        """Computes the figures of all workers' shares in another thread, see `evaluate_shares`, after `write`."""

        def evaluate() -> ValidationFigures:
            if write is not None:
                write([result for share in shares for result in share])
            return evaluate_shares(shares, self.truth)

        return self._thread.submit(evaluate)

    def _batches(
        self, predictor: Predictor, failed: list[ImageResult]
    ) -> Iterator[list[tuple[PlannedImage, np.ndarray]]]:
        """Batches of images and pixels that share one padded size; the last batch of a size may be smaller.

        Images that cannot be read are added to `failed`.
        """
        images = list(zip(self._planned, self.annotated.images))[self.worker.rank :: self.worker.world_size]
        loader: DataLoader[_Photo] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_processes,
            collate_fn=partial(_load, in_channels=self.spec.in_channels),  # in the process that reads
            multiprocessing_context="fork" if self.num_processes else None,
        )
        batches: dict[tuple[int, int], list[tuple[PlannedImage, np.ndarray]]] = {}
        for image, pixels in loader:
            if isinstance(pixels, str):
                failed.append(ImageResult(image, "unreadable", pixels))
                continue
            batch = batches.setdefault(predictor.padded_size(*pixels.shape[:2]), [])
            batch.append((image, pixels))
            if len(batch) == _BATCH_SIZE:
                yield batch.copy()
                batch.clear()
        yield from (batch for batch in batches.values() if batch)

    def _predict(self, predictor: Predictor, batch: list[tuple[PlannedImage, np.ndarray]]) -> Iterator[ImageResult]:
        for (image, pixels), detections in zip(batch, predictor.predict([pixels for _, pixels in batch])):
            height, width = pixels.shape[:2]
            columns = encode_instances(detections, self.categories, (height, width), MASK_THRESHOLD)
            yield ImageResult(image, OK, None, height, width, None, columns)


def evaluate_shares(shares: Sequence[list[ImageResult]], truth: Truth) -> ValidationFigures:
    """The figures over all workers' predictions.

    Accuracy is TP / (TP + FP + FN), where a true positive has a mask IoU and a score of at least 0.5. It says less than
    AP, and only serves to compare with studies that report it. Without any prediction every figure is 0.

    Figures do not depend on how images are split over workers: rows are ordered by image first.
    """
    import pandas as pd

    from pipeline.evaluation.metrics import evaluate

    found = sorted(
        (result for share in shares for result in share if result.num_instances), key=lambda result: result.image.uri
    )
    if not found:
        nothing = dict.fromkeys(CLASS_FIGURES, 0.0)
        by_class = tuple(_of_class(name, nothing) for name in truth.names.values())
        return ValidationFigures(dict.fromkeys((*FIGURES, "accuracy"), 0.0), by_class)
    columns = {name: [value for result in found for value in result.instances[name]] for name in found[0].instances}
    columns["image_id"] = [result.image.uri for result in found for _ in range(result.num_instances)]
    metrics = evaluate(pd.DataFrame(columns), None, truth)
    figures = {column: float(metrics.overall(*figure)) for column, figure in FIGURES.items()}
    counts = [metrics.overall("segm", name) for name in ("true_positives", "false_positives", "false_negatives")]
    figures["accuracy"] = counts[0] / sum(counts) if sum(counts) else float("nan")
    by_kind = {kind: metrics.figures(kind) for kind, _ in CLASS_FIGURES.values()}
    by_class = tuple(
        _of_class(name, {column: by_kind[kind][number][figure] for column, (kind, figure) in CLASS_FIGURES.items()})
        for number, name in truth.names.items()
    )
    return ValidationFigures({column: value for column, value in figures.items() if np.isfinite(value)}, by_class)


def _of_class(name: str, figures: dict[str, float]) -> dict[str, float | str]:
    return {"category": name, **figures}


def _load(image: tuple[PlannedImage, AnnotatedImage], *, in_channels: int) -> _Photo:
    """An image and its pixels, turned as its annotations are, or why it cannot be read."""
    planned, annotated = image
    try:
        return planned, load_photo(annotated, in_channels=in_channels)[0]
    except UnusablePhoto as error:
        return planned, str(error)
