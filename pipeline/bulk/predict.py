"""Predictor of a bulk run: a checkpoint on one device, from batches of pixels to detections.

This is the only module of the bulk run that imports the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.categories import Category
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError
from model.heads.rpn import NonFiniteOutput
from model.inference import openvino_engine
from model.inference.mask_rle import Paste
from model.inference.predictor import Detections, Predictor, native_engine
from model.inference.prefetch import Image, upload_ahead
from model.network import MaskRCNN
from model.spec import ModelSpec
from pipeline import malloc
from pipeline.images.slices import SlicedDetections, cut
from pipeline.run_spec import SegmentSpec
from pipeline.storage.base import StorageSettings
from pipeline.storage.cache import cached_folder, folder_in_cache, local_folder

# Memory is given back at the end of a network call, at most so often: after each window it cost small networks 3% of
# the time.
GIVE_BACK_EVERY_S = 5.0

Prediction = Detections | SlicedDetections | str
"""What an image gives: its detections, those of its slices, or the reason why the network failed on it."""


def build_predictor(
    network: MaskRCNN,
    spec: ModelSpec,
    sha256: str,
    *,
    engine: str,
    precision: str,
    device: str,
    score_threshold: float | None,
    max_detections: int,
) -> Predictor:
    """The predictor of a checkpoint's network. For OpenVINO the network is converted, once for all of this machine.

    Args:
        network: in evaluation mode, on the CPU.
        spec, sha256: of the checkpoint.
        engine: one of `model.inference.predictor.ENGINES`.
        precision: 'float32' or 'bfloat16'.
        device: 'cuda' or 'cpu'.
        score_threshold, max_detections: see `Predictor`.

    Raises:
        EngineError: this machine cannot compute with the engine in the precision.
    """
    parts = None
    if engine == "openvino":
        openvino_engine.check_engine(precision)
        folder = cached_folder(
            openvino_engine.conversion_name(sha256, spec),
            lambda folder: openvino_engine.convert(network, folder),
            openvino_engine.is_whole,
        )
        parts = openvino_engine.load(folder, precision, torch.get_num_threads())
    return Predictor(
        network,
        spec,
        device=device,
        score_threshold=score_threshold,
        max_detections=max_detections,
        dtype=getattr(torch, precision),
        parts=parts,
    )


def engine_of_few(checkpoint: Checkpoint, precision: str, device: str) -> str:
    """The engine for a few images: the faster one, unless it would have to convert the network first."""
    engine = native_engine(precision, device)
    if engine == "openvino":
        name = openvino_engine.conversion_name(checkpoint.sha256, checkpoint.spec)
        return engine if folder_in_cache(name).is_dir() else "torch"
    return engine


class ImagePredictor:
    """A checkpoint's network on one device, ready to predict batches of images.

    Args:
        uri: the checkpoint's folder; one in a bucket is fetched to this machine once.
        sha256: hash that its weights must have: weights that changed under the same name must not enter a run.
        segment: engine, precision, thresholds, number of detections, and how images that are larger than a slice are
            cut. On a GPU masks leave it as run lengths.
        batch_size: images in one network call, at most.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        num_threads: CPU threads of the network; None leaves torch's own choice.
        storage: how a bucket is reached, see `open_storage`.

    Raises:
        CheckpointError: the checkpoint is unreadable, or its weights have another hash.
        EngineError: this machine cannot compute with the engine in the precision.
    """

    def __init__(
        self,
        uri: str,
        *,
        sha256: str,
        segment: SegmentSpec,
        batch_size: int,
        device: str | None = None,
        num_threads: int | None = None,
        storage: StorageSettings | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        checkpoint = load_checkpoint(local_folder(uri, CHECKPOINT_MARKER, storage), with_training_state=False)
        if checkpoint.sha256 != sha256:
            raise CheckpointError(
                f"{uri}: its weights are {checkpoint.sha256[:12]}..., the run was begun with {sha256[:12]}..."
            )
        self.categories: tuple[Category, ...] = checkpoint.categories
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        self.slicing = segment.slice
        self.paste = Paste(segment.mask_threshold) if self.device == "cuda" else None
        network, spec = checkpoint.build(), checkpoint.spec
        del checkpoint  # frees its copy of the weights
        self.predictor = build_predictor(
            network,
            spec,
            sha256,
            engine=segment.engine,
            precision=segment.precision,
            device=self.device,
            score_threshold=segment.score_threshold,
            max_detections=segment.max_detections,
        )

    def predict(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        """Detections of each image, in order; where the network fails on an image, the reason instead.

        Only images of one padded size share a network call, and which ones do depends on the sizes alone.

        Args:
            images: uint8 RGB [H, W, 3], or float32 [H, W, C] of the channels the network takes, of any sizes.
            sizes: (height, width) of each original, where an image is a smaller version of it; boxes are in pixels of
                the originals. None: the images are the originals, as they have to be where images are cut.

        Returns:
            One entry for each image, [] for none; boxes are XYXY in pixels of the original, those of a cut image in
            pixels of their slice.
        """
        sizes = [image.shape[:2] for image in images] if sizes is None else sizes
        is_cut = [self._is_cut(size) for size in sizes]
        predictions_of_whole = iter(
            self._predict_whole(
                [image for image, cut_up in zip(images, is_cut) if not cut_up],
                [size for size, cut_up in zip(sizes, is_cut) if not cut_up],
                self.paste,
            )
        )
        return [
            self._predict_slices(image) if cut_up else next(predictions_of_whole)
            for image, cut_up in zip(images, is_cut)
        ]

    def _is_cut(self, size: tuple[int, int]) -> bool:
        return self.slicing is not None and max(size) > self.slicing.size

    def _predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], paste: Paste | None = None
    ) -> list[Detections | str]:
        results: list[Detections | str] = ["not predicted"] * len(images)
        batches = self.predictor.batches(sizes, self.batch_size)
        uploaded = upload_ahead(([images[index] for index in batch] for batch in batches), self.predictor.device)
        for batch, batch_images in zip(batches, uploaded):
            batch_results = self._predict_batch(batch_images, [sizes[index] for index in batch], paste)
            for index, result in zip(batch, batch_results):
                results[index] = result
            malloc.give_back_holes(every_s=GIVE_BACK_EVERY_S)
        return results

    def _predict_slices(self, image: np.ndarray) -> SlicedDetections | str:
        """The detections of each slice of a huge image; the first slice's reason where the network fails on one."""
        assert self.slicing is not None
        slices = cut(image.shape[0], image.shape[1], self.slicing)
        views = [image[window.top : window.bottom, window.left : window.right] for window in slices]
        results = self._predict_whole(views, [view.shape[:2] for view in views])
        for window, result in zip(slices, results):
            if isinstance(result, str):
                return f"slice at row {window.top}, column {window.left}: {result}"
        return SlicedDetections(slices, [result for result in results if not isinstance(result, str)])

    def _predict_batch(
        self, images: Sequence[Image], sizes: list[tuple[int, int]], paste: Paste | None
    ) -> list[Detections | str]:
        """One network call; out of memory or not finite, the batch is halved until one image fails alone."""
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
