"""Validation during a training: every worker predicts a share of the set, rank 0 computes AP while training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from jobs.training.sets import validation_truth
from model.categories import Category
from model.inference.predictor import Predictor
from model.network import MaskRCNN
from model.spec import ModelSpec
from model.training.train_step import ALONE, WorkerRank
from pipeline.bulk.encode import encode_instances
from pipeline.dataset.photos import UnusablePhoto, load_photo
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet

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
_MASK_THRESHOLD = 0.5
_BATCH_SIZE = 4  # images of one forward pass, at most
Columns = dict[str, list[Any]]
"""Instances of one image by column; each list has one value per instance."""
_Photo = tuple[str, np.ndarray]
"""Path and pixels, as `pipeline.dataset.photos.load_photo` gives them."""


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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validation")

    def __enter__(self) -> Validation:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def predict(self, model: MaskRCNN) -> list[Columns]:
        """Predicts this worker's share: a dict of instance columns for each image in which any instance was detected.

        The columns are those of `pipeline.bulk.encode.encode_instances` and `image_id`. The network is not changed.
        Images that cannot be read are left out, so their objects count as missed.
        """
        predictor = Predictor(model, self.spec, device=self.device)
        return [columns for batch in self._batches(predictor) for columns in self._predict(predictor, batch)]

    def evaluate_later(self, shares: Sequence[list[Columns]]) -> Future[dict[str, float]]:
        """Computes the figures of all workers' shares in another thread; see `evaluate_shares`."""
        return self._thread.submit(evaluate_shares, shares, self.truth)

    def _batches(self, predictor: Predictor) -> Iterator[list[_Photo]]:
        """Batches of (path, pixels) that share one padded size; the last batch of a size may be smaller."""
        loader: DataLoader[_Photo | None] = DataLoader(
            self.annotated.images[self.worker.rank :: self.worker.world_size],  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_processes,
            collate_fn=partial(_load, in_channels=self.spec.in_channels),  # in the process that reads
            multiprocessing_context="fork" if self.num_processes else None,
        )
        batches: dict[tuple[int, int], list[_Photo]] = {}
        for photo in loader:
            if photo is None:
                continue
            batch = batches.setdefault(predictor.padded_size(*photo[1].shape[:2]), [])
            batch.append(photo)
            if len(batch) == _BATCH_SIZE:
                yield batch.copy()
                batch.clear()
        yield from (batch for batch in batches.values() if batch)

    def _predict(self, predictor: Predictor, batch: list[_Photo]) -> Iterator[Columns]:
        for (path, pixels), detections in zip(batch, predictor.predict([pixels for _, pixels in batch])):
            columns = encode_instances(detections, self.categories, pixels.shape[:2], _MASK_THRESHOLD)
            if columns["score"]:
                yield {**columns, "image_id": [path] * len(columns["score"])}


def evaluate_shares(shares: Sequence[list[Columns]], truth: Truth) -> dict[str, float]:
    """The FIGURES over all workers' predictions, and accuracy; figures that cannot be measured are left out.

    Accuracy is TP / (TP + FP + FN), where a true positive has a mask IoU and a score of at least 0.5. It says less than
    AP, and only serves to compare with studies that report it. Without any prediction every figure is 0.

    Figures do not depend on how images are split over workers: rows are ordered by image first.
    """
    import pandas as pd

    from pipeline.evaluation.metrics import evaluate

    images = sorted((columns for share in shares for columns in share), key=lambda columns: columns["image_id"][0])
    if not images:
        return dict.fromkeys((*FIGURES, "accuracy"), 0.0)
    frame = pd.DataFrame({name: [value for columns in images for value in columns[name]] for name in images[0]})
    metrics = evaluate(frame, None, truth)
    figures = {column: float(metrics.overall(*figure)) for column, figure in FIGURES.items()}
    counts = [metrics.overall("segm", name) for name in ("true_positives", "false_positives", "false_negatives")]
    figures["accuracy"] = counts[0] / sum(counts) if sum(counts) else float("nan")
    return {column: value for column, value in figures.items() if np.isfinite(value)}


def _load(image: AnnotatedImage, *, in_channels: int) -> _Photo | None:
    """An image's path and its pixels, turned as its annotations are; None where it cannot be read."""
    try:
        return image.path.uri, load_photo(image, in_channels=in_channels)[0]
    except UnusablePhoto:
        return None
