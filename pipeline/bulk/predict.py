"""From pixels to detections: the one place of the bulk run that knows the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.categories import Category
from model.checkpoint import CHECKPOINT_MARKER, CheckpointError, load_checkpoint
from model.predictor import Detections, NonFiniteOutput, Predictor
from pipeline.cache import local_folder


class ImagePredictor:
    """A checkpoint made ready to predict on one device.

    Args:
        uri: the checkpoint's folder; one in a bucket is fetched to this machine once.
        sha256: what its weights must hash to; weights that changed under the same name must not enter a run.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        batch_size: images a network call, at most.
        num_threads: CPU threads of the network; None leaves torch's own choice.

    Raises:
        CheckpointError: unreadable, or not the weights that were promised.
    """

    def __init__(
        self,
        uri: str,
        *,
        sha256: str,
        score_threshold: float,
        max_detections: int,
        batch_size: int,
        device: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        checkpoint = load_checkpoint(local_folder(uri, CHECKPOINT_MARKER))
        if checkpoint.sha256 != sha256:
            raise CheckpointError(
                f"{uri}: its weights are {checkpoint.sha256[:12]}..., the run was begun with {sha256[:12]}..."
            )
        self.categories: tuple[Category, ...] = checkpoint.categories
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        self.predictor = Predictor(
            checkpoint.build(),
            checkpoint.spec,
            device=self.device,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections | str]:
        """Detections of each image, in order; where the network fails on an image, the reason instead.

        Args:
            images: uint8 RGB [H, W, 3], or float32 [H, W, C] of the channels the network takes, of any sizes.

        Only images of one padded size share a network call, and which do depends on `images` alone.
        """
        results: list[Detections | str] = ["not predicted"] * len(images)
        sizes = [image.shape[:2] for image in images]
        for batch in self.predictor.batches(sizes, self.batch_size):
            for index, result in zip(batch, self._predict_batch([images[index] for index in batch])):
                results[index] = result
        return results

    def _predict_batch(self, images: list[np.ndarray]) -> list[Detections | str]:
        """One network call; out of memory or not finite, the batch is halved until the offender stands alone."""
        try:
            return list(self.predictor.predict(images))
        except (torch.OutOfMemoryError, NonFiniteOutput) as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(images) == 1:
                return [f"{type(error).__name__}: {error}"]
        half = len(images) // 2
        return self._predict_batch(images[:half]) + self._predict_batch(images[half:])
