"""Validation while training: every worker predicts its share, rank 0 computes the AP beside the next steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.categories import Category
from model.inference.predictor import Predictor
from model.network import MaskRCNN
from model.spec import ModelSpec
from pipeline.bulk.encode import encode_instances
from pipeline.dataset.photos import UnusablePhoto, load_photo
from pipeline.dataset.types import AnnotatedSet

# Figures that one validation adds to metrics.parquet: column -> (kind of IoU, name in pipeline.evaluation.metrics).
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


class Validation:
    """A validation set and the measuring of a network on it. A context manager (it holds a thread).

    Args:
        annotated: The validation set, under the model's class map.
        categories: The model's class map.
        spec: The network's spec.
        device: Where it predicts.
        rank, world_size: This worker's share is every world_size-th image from rank.
        batch_size: Images of one network call, at most.
        num_processes: Processes that read photos; 0 reads them between the predictions.
    """

    def __init__(
        self,
        annotated: AnnotatedSet,
        categories: Sequence[Category],
        spec: ModelSpec,
        *,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 4,
        num_processes: int = 0,
    ) -> None:
        self.annotated = annotated
        self.categories = tuple(categories)
        self.spec = spec
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        self.num_processes = num_processes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validation")

    def __enter__(self) -> Validation:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def predict(self, model: MaskRCNN) -> list[dict[str, list]]:
        """This worker's share: for each of its images that has any, the columns of its instances.

        The network is left as it is. Photos that cannot be read are left out, and so count as missed.
        """
        predictor = Predictor(model, self.spec, device=self.device)
        return [columns for batch in self._batches(predictor) for columns in self._predict(predictor, batch)]

    def evaluate_later(self, shares: Sequence[list[dict[str, list]]]) -> Future[dict[str, float]]:
        """Starts computing the figures of all workers' shares in another thread."""
        return self._thread.submit(evaluate_shares, shares, self.annotated)

    def _batches(self, predictor: Predictor) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Photos of equal padded size together; a size's last batch may be smaller."""
        places = range(self.rank, len(self.annotated), self.world_size)
        photos = _Photos(self.annotated, places, self.spec.in_channels)
        loader = DataLoader(
            photos,
            batch_size=None,
            num_workers=self.num_processes,
            collate_fn=_as_it_is,
            multiprocessing_context="fork" if self.num_processes else None,
        )
        waiting: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}
        for photo in loader:
            if photo is None:
                continue
            same_size = waiting.setdefault(predictor.padded_size(*photo[1].shape[:2]), [])
            same_size.append(photo)
            if len(same_size) == self.batch_size:
                yield same_size.copy()
                same_size.clear()
        yield from (rest for rest in waiting.values() if rest)

    def _predict(self, predictor: Predictor, batch: list[tuple[str, np.ndarray]]) -> Iterator[dict[str, list]]:
        for (name, pixels), detections in zip(batch, predictor.predict([pixels for _, pixels in batch])):
            columns = encode_instances(detections, self.categories, pixels.shape[:2], _MASK_THRESHOLD)
            if columns["score"]:
                yield {**columns, "image_id": [name] * len(columns["score"])}


def evaluate_shares(shares: Sequence[list[dict[str, list]]], truth: AnnotatedSet) -> dict[str, float]:
    """The FIGURES over all workers' predictions, and accuracy; those that cannot be measured are left out.

    Accuracy is the share of the objects found (mask IoU and score of at least 0.5) in all that were found, missed or
    made up: TP / (TP + FP + FN). It says less than AP and is only for comparing with studies that give one.
    A figure is the same however the images were dealt to workers: rows are ordered by image first.
    """
    import pandas as pd

    from pipeline.evaluation.metrics import evaluate

    columns = sorted((one for share in shares for one in share), key=lambda one: one["image_id"][0])
    if not columns:
        return dict.fromkeys((*FIGURES, "accuracy"), 0.0)
    frame = pd.DataFrame({name: [value for one in columns for value in one[name]] for name in columns[0]})
    metrics = evaluate(frame, None, truth)
    figures = {column: float(metrics.overall(*figure)) for column, figure in FIGURES.items()}
    found, wrong, missed = (
        metrics.overall("segm", name) for name in ("true_positives", "false_positives", "false_negatives")
    )
    figures["accuracy"] = found / (found + wrong + missed) if found + wrong + missed else float("nan")
    return {column: value for column, value in figures.items() if np.isfinite(value)}


class _Photos(Dataset):
    """Photos by name, as the annotations see them; None for one that cannot be read."""

    def __init__(self, annotated: AnnotatedSet, places: Sequence[int], in_channels: int) -> None:
        self.annotated = annotated
        self.places = places
        self.in_channels = in_channels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray] | None:
        if index >= len(self.places):
            raise IndexError(index)
        image = self.annotated.images[self.places[index]]
        try:
            return image.file_name, load_photo(image, in_channels=self.in_channels)[0]
        except UnusablePhoto:
            return None


def _as_it_is(photo: Any) -> Any:
    return photo
