"""From pixels to detections: the one place of the bulk run that knows the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.categories import Category
from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError
from model.inference.mask_rle import Paste
from model.inference.predictor import Detections, NonFiniteOutput, Predictor
from model.inference.prefetch import Image, upload_ahead
from pipeline import malloc
from pipeline.bulk.slices import SlicedDetections, Slicing, cut
from pipeline.masks.rle_kernel import torch_resize_is_fused
from pipeline.storage.cache import local_folder

GIVE_BACK_EVERY_S = 5.0  # at the end of a network call; after each window it cost small networks 3% of the time


class ImagePredictor:
    """A checkpoint made ready to predict on one device.

    Args:
        uri: the checkpoint's folder; one in a bucket is fetched to this machine once.
        sha256: what its weights must hash to; weights that changed under the same name must not enter a run.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        batch_size: images a network call, at most.
        precision: 'float32', or 'bfloat16', which is the fast mode.
        num_threads: CPU threads of the network; None leaves torch's own choice.
        mask_threshold: probability from which a pixel belongs to a mask; on a GPU masks leave it as run lengths.
        slicing: how images that are larger than a slice are cut; None cuts none.

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
        precision: str = "float32",
        device: str | None = None,
        num_threads: int | None = None,
        slicing: Slicing | None = None,
        mask_threshold: float = 0.5,
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
        self.slicing = slicing
        self.paste = Paste(mask_threshold, torch_resize_is_fused()) if self.device == "cuda" else None
        network, spec = checkpoint.build(), checkpoint.spec
        del checkpoint  # its weights, which are now the network's
        self.predictor = Predictor(
            network,
            spec,
            device=self.device,
            score_threshold=score_threshold,
            max_detections=max_detections,
            dtype=getattr(torch, precision),
        )

    def predict(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Detections | SlicedDetections | str]:
        """Detections of each image, in order; where the network fails on an image, the reason instead.

        Args:
            images: uint8 RGB [H, W, 3], or float32 [H, W, C] of the channels the network takes, of any sizes.
            sizes: (height, width) of each original, where an image is a smaller version of it; boxes are in pixels of
                the originals. None: the images are the originals, as they have to be where images are cut.

        Only images of one padded size share a network call, and which do depends on the sizes alone.
        """
        sizes = [image.shape[:2] for image in images] if sizes is None else sizes
        plain = [not self._is_cut(size) for size in sizes]
        whole = iter(
            self._predict_whole(
                [image for image, is_plain in zip(images, plain) if is_plain],
                [size for size, is_plain in zip(sizes, plain) if is_plain],
                self.paste,
            )
        )
        return [next(whole) if is_plain else self._predict_cut(image) for image, is_plain in zip(images, plain)]

    def _is_cut(self, size: tuple[int, int]) -> bool:
        return self.slicing is not None and max(size) > self.slicing.size

    def _predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], paste: Paste | None = None
    ) -> list[Detections | str]:
        results: list[Detections | str] = ["not predicted"] * len(images)
        batches = self.predictor.batches(sizes, self.batch_size)
        uploaded = upload_ahead(([images[index] for index in batch] for batch in batches), self.predictor.device)
        for batch, sent in zip(batches, uploaded):
            found = self._predict_batch(sent, [sizes[index] for index in batch], paste)
            for index, result in zip(batch, found):
                results[index] = result
            malloc.give_back_holes(every_s=GIVE_BACK_EVERY_S)
        return results

    def _predict_cut(self, image: np.ndarray) -> SlicedDetections | str:
        """A huge image, slice by slice; the first slice's reason where the network fails on one."""
        assert self.slicing is not None
        slices = cut(image.shape[0], image.shape[1], self.slicing)
        views = [image[one.top : one.bottom, one.left : one.right] for one in slices]
        found = self._predict_whole(views, [view.shape[:2] for view in views])
        for one, result in zip(slices, found):
            if isinstance(result, str):
                return f"slice at row {one.top}, column {one.left}: {result}"
        return SlicedDetections(slices, [result for result in found if not isinstance(result, str)])

    def _predict_batch(
        self, images: Sequence[Image], sizes: list[tuple[int, int]], paste: Paste | None
    ) -> list[Detections | str]:
        """One network call; out of memory or not finite, the batch is halved until the offender stands alone."""
        try:
            return list(self.predictor.predict(images, sizes, paste))
        except (torch.OutOfMemoryError, NonFiniteOutput) as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(images) == 1:
                return [f"{type(error).__name__}: {error}"]
        half = len(images) // 2
        first = self._predict_batch(images[:half], sizes[:half], paste)
        return first + self._predict_batch(images[half:], sizes[half:], paste)
