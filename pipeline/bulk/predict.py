"""Predictors of a bulk run: a checkpoint, or a predictor of the user's own, and SAM behind either; detections out.

This is the only module of the bulk run that imports the network.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from model.categories import Category
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError
from model.inference import openvino_engine
from model.inference.openvino_engine import EngineError
from model.inference.predictor import Detections, Predictor, check_engine, check_int8, native_engine
from model.inference.prefetch import upload_ahead
from model.inference.sam import SamRefiner
from model.network import MaskRCNN
from model.spec import ModelSpec
from model.weights.sam import find_sam
from pipeline import malloc
from pipeline.images.slices import MaskedInstances, SlicedDetections, cut
from pipeline.masks.rle import runs_to_counts, runs_to_rle
from pipeline.predictors.answers import AnswerError, to_masked
from pipeline.predictors.contract import RunFault
from pipeline.predictors.source import PredictorError, PredictorSource, in_words
from pipeline.run_spec import RunCategory, SegmentSpec, Slicing
from pipeline.storage.base import StorageSettings
from pipeline.storage.cache import cached_folder, folder_in_cache, local_folder
from pipeline.thresholds import thresholds_by_label

# Memory is given back at the end of a network call, at most so often: after each window it cost small networks 3% of
# the time.
GIVE_BACK_EVERY_S = 5.0

# Seconds beyond its limit after which a call that lets no other thread run, and so does not end by it, ends its worker.
GRACE_S = 30.0

Prediction = Detections | MaskedInstances | SlicedDetections | str
"""What an image gives: its detections, those of its slices, or the reason why the predictor failed on it."""


def end_process(reason: str) -> None:
    """Ends this process at once; Ray starts another worker in its place."""
    os.kill(os.getpid(), signal.SIGKILL)


class SlicingPredictor(ABC):
    """A predictor that is ready for images of any size: large ones are cut into slices, each an image of its own.

    Attributes:
        categories: label k is categories[k - 1].
        batch_size: images of one call, at most.
        slicing: how images that are larger than a slice are cut; None cuts none.
        give_up: called with a reason where the predictor cannot go on in this process, which has to end.
    """

    categories: Sequence[Category | RunCategory]
    batch_size: int
    slicing: Slicing | None
    give_up: Callable[[str], None] = staticmethod(end_process)

    def predict(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        """Detections of each image, in order; where the predictor fails on an image, the reason instead.

        Args:
            images: uint8 RGB [H, W, 3], or float32 [H, W, C] of the channels the predictor takes, of any sizes.
            sizes: (height, width) of each original, where an image is a smaller version of it; boxes are in pixels of
                the originals. None: the images are the originals, as they have to be where images are cut.

        Returns:
            One entry for each image, [] for none; boxes are XYXY in pixels of the original, those of a cut image in
            pixels of their slice.
        """
        sizes = [image.shape[:2] for image in images] if sizes is None else sizes
        is_cut = [self._is_cut(size) for size in sizes]
        predictions_of_whole = iter(
            self.predict_whole(
                [image for image, cut_up in zip(images, is_cut) if not cut_up],
                [size for size, cut_up in zip(sizes, is_cut) if not cut_up],
            )
        )
        return [
            self._predict_slices(image) if cut_up else next(predictions_of_whole)
            for image, cut_up in zip(images, is_cut)
        ]

    @abstractmethod
    def predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], *, are_slices: bool = False
    ) -> Sequence[Detections | MaskedInstances | str]:
        """As `predict`, of images none of which is cut; `are_slices`: they are the slices of one."""

    def _is_cut(self, size: tuple[int, int]) -> bool:
        return self.slicing is not None and max(size) > self.slicing.size

    def _predict_slices(self, image: np.ndarray) -> SlicedDetections | str:
        """The detections of each slice of a huge image; the first slice's reason where the predictor fails on one."""
        assert self.slicing is not None
        slices = cut(image.shape[0], image.shape[1], self.slicing)
        views = [image[window.top : window.bottom, window.left : window.right] for window in slices]
        results = self.predict_whole(views, [view.shape[:2] for view in views], are_slices=True)
        for window, result in zip(slices, results):
            if isinstance(result, str):
                return f"slice at row {window.top}, column {window.left}: {result}"
        return SlicedDetections(slices, [result for result in results if not isinstance(result, str)])


def build_predictor(
    network: MaskRCNN,
    spec: ModelSpec,
    sha256: str,
    *,
    engine: str,
    precision: str,
    device: str,
    score_threshold: float | Sequence[float] | None,
    max_detections: int,
    int8: Mapping[str, bytes],
) -> Predictor:
    """The predictor of a checkpoint's network. For OpenVINO the network is converted, once for all of this machine.

    In int8 the checkpoint's own parts are taken instead.

    Args:
        network: in evaluation mode, on the CPU.
        spec, sha256: of the checkpoint.
        engine: one of `model.inference.predictor.ENGINES`.
        precision: 'float32', 'bfloat16' or 'int8'.
        device: 'cuda' or 'cpu'.
        score_threshold, max_detections: see `Predictor`.
        int8: `Checkpoint.int8`.

    Raises:
        CheckpointError: parts in int8 that cannot be read.
        EngineError: this machine cannot compute with the engine in the precision on the device, or cannot keep the
            conversion.
    """
    check_engine(engine, precision, device)
    parts = None
    if precision == "int8":
        check_int8(int8)
        parts = openvino_engine.load_files(int8, torch.get_num_threads())
    elif engine == "openvino":
        try:
            folder = cached_folder(
                openvino_engine.conversion_name(sha256, spec),
                lambda folder: openvino_engine.convert(network, folder),
                openvino_engine.is_whole,
            )
        except OSError as error:
            raise EngineError(f"openvino's form of the network cannot be kept in the cache: {error}") from error
        parts = openvino_engine.load(folder, precision, torch.get_num_threads())
    return Predictor(
        network,
        spec,
        device=device,
        score_threshold=score_threshold,
        max_detections=max_detections,
        dtype=torch.float32 if precision == "int8" else getattr(torch, precision),
        parts=parts,
    )


def engine_of_few(checkpoint: Checkpoint, precision: str, device: str) -> str:
    """The engine for a few images: the faster one, unless it would have to convert the network first."""
    engine = native_engine(precision, device)
    if engine == "openvino" and precision != "int8":
        name = openvino_engine.conversion_name(checkpoint.sha256, checkpoint.spec)
        return engine if folder_in_cache(name).is_dir() else "torch"
    return engine


class ImagePredictor(SlicingPredictor):
    """A checkpoint's network on one device, ready to predict batches of images.

    Only images of one padded size share a network call, and which ones do depends on the sizes alone.

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
        PredictorError: this machine cannot compute with the run's engine.
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
        self.categories = checkpoint.categories
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        self.slicing = segment.slice
        self.runs_at = segment.mask_threshold if self.device == "cuda" else None
        network, spec, int8 = checkpoint.build(), checkpoint.spec, checkpoint.int8
        del checkpoint  # frees its copy of the weights
        try:
            self.predictor = build_predictor(
                network,
                spec,
                sha256,
                engine=segment.engine,
                precision=segment.precision,
                device=self.device,
                score_threshold=thresholds_by_label(
                    [category.name for category in self.categories],
                    spec.score_threshold if segment.score_threshold is None else segment.score_threshold,
                    segment.score_thresholds,
                ),
                max_detections=segment.max_detections,
                int8=int8,
            )
        except EngineError as error:
            raise PredictorError(f"segment.engine: {error}") from error

    def predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], *, are_slices: bool = False
    ) -> list[Detections | str]:
        """As `predict`, of images none of which is cut; slices' masks stay probabilities, which are moved with them."""
        results: list[Detections | str] = ["not predicted"] * len(images)
        batches = self.predictor.batches(sizes, self.batch_size)
        uploaded = upload_ahead(([images[index] for index in batch] for batch in batches), self.predictor.device)
        runs_at = None if are_slices else self.runs_at
        for batch, batch_images in zip(batches, uploaded):
            batch_results = self.predictor.predict_or_reasons(batch_images, [sizes[index] for index in batch], runs_at)
            for index, result in zip(batch, batch_results):
                results[index] = result
            malloc.give_back_holes(every_s=GIVE_BACK_EVERY_S)
        return results


class RefiningPredictor(SlicingPredictor):
    """A predictor whose masks SAM makes anew from its boxes; boxes, scores, labels and keypoints stay as they are.

    SAM gets each image once, or of an image that is cut each slice, and not those without instances. What it fails on,
    such as for lack of memory or by output that is not finite, costs that image. After a failure of the GPU `give_up`
    ends the process.

    Args:
        uri: see `inner`.
        inner: builds the predictor of the boxes, as `ImagePredictor` or `UserPredictor` is built.
        model: SAM's folder or name, see `model.weights.sam.find_sam`.
        boxes_at_once: boxes in one pass of SAM's mask decoder, at most.
        segment: with `refine`, which says which weights SAM must have.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        settings: the others of `inner`.

    Raises:
        CheckpointError, PredictorError: as `inner`; or SAM's weights are unreadable or have another hash.
    """

    def __init__(
        self,
        uri: str,
        *,
        inner: Callable[..., SlicingPredictor],
        model: str,
        boxes_at_once: int,
        segment: SegmentSpec,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.inner = inner(uri, segment=segment, device=device, **settings)
        if isinstance(self.inner, ImagePredictor):
            self.inner.runs_at = None  # its own masks are not needed
        self.categories, self.slicing = self.inner.categories, self.inner.slicing
        self.batch_size = self.inner.batch_size
        refine = segment.refine
        assert refine is not None
        try:
            weights = find_sam(model, refine.revision or None, refine.sha256)
            if weights.sha256 != refine.sha256:
                raise CheckpointError(
                    f"the weights of {model} are {weights.sha256[:12]}... here, the run was begun with "
                    f"{refine.sha256[:12]}..."
                )
            self.refiner = SamRefiner(
                weights, device=device, batch_size=boxes_at_once, mask_threshold=segment.mask_threshold
            )
        except CheckpointError as error:
            raise PredictorError(f"segment.refine.model: {error}") from error

    def predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], *, are_slices: bool = False
    ) -> list[MaskedInstances | str]:
        """As `predict`, of images none of which is cut and each of which has its original's size."""
        self.inner.give_up = self.give_up
        results = self.inner.predict_whole(images, sizes, are_slices=are_slices)
        return [
            result if isinstance(result, str) else self._refined(image, result)
            for image, result in zip(images, results, strict=True)
        ]

    def _refined(self, image: np.ndarray, found: Detections | MaskedInstances) -> MaskedInstances | str:
        height, width = image.shape[:2]
        boxes = found.boxes
        asked = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))  # the others hold no pixel
        counts, areas = [runs_to_rle([height * width], height, width)] * len(boxes), np.zeros(len(boxes), np.int64)
        try:
            refined, areas[asked] = runs_to_counts(*self.refiner.refine(image, boxes[asked]))
        except Exception as error:  # of transformers, of any kind: it costs this image and not the run
            if isinstance(error, torch.AcceleratorError):
                self.give_up(f"the GPU failed: {in_words(error)}")
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return f"SAM: {in_words(error)}"
        finally:
            malloc.give_back_holes(every_s=GIVE_BACK_EVERY_S)
        for index, text in zip(asked.tolist(), refined, strict=True):
            counts[index] = text
        return MaskedInstances(found.labels, found.scores, boxes, counts, areas, found.keypoints)


class UserPredictor(SlicingPredictor):
    """A predictor of the user's own, ready to predict batches of images; see `pipeline.predictors.contract`.

    What it raises, and an answer that breaks its contract, costs one image: a batch is halved until one fails alone. A
    call that takes too long, or after which the GPU does not work any more, ends the process by `give_up`.

    Args:
        name: its "package.module:Class".
        sha256: hash that it must have, see `RunModel.sha256`: code, weights or classes that differ must not enter a
            run.
        segment: thresholds, number of instances, and how images that are larger than a slice are cut.
        batch_size: images in one call, at most.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        num_threads: CPU threads of torch; None leaves its own choice.
        storage: not used; its settings say where its files are.
        source: its code and settings.
        timeout_s: seconds of one call, at most.

    Raises:
        PredictorError: it cannot be imported or loaded here, or is another one than the run's.
    """

    def __init__(
        self,
        name: str,
        *,
        sha256: str,
        segment: SegmentSpec,
        batch_size: int,
        source: PredictorSource,
        timeout_s: float,
        device: str | None = None,
        num_threads: int | None = None,
        storage: StorageSettings | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        opened = source.open()
        if opened.model.sha256 != sha256:
            raise PredictorError(
                f"segment.predictor: {name} is another one here than where the run was begun: its code, its identity() "
                "or its categories differ"
            )
        opened.load(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.segmenter, self.categories = opened.segmenter, opened.model.categories
        self.segment, self.slicing = segment, segment.slice
        self.batch_size, self.timeout_s = batch_size, timeout_s

    def predict_whole(
        self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], *, are_slices: bool = False
    ) -> list[MaskedInstances | str]:
        """As `predict`, of images none of which is cut: in batches in their order, whatever their sizes."""
        return [
            result
            for start in range(0, len(images), self.batch_size)
            for result in self._answers(images[start : start + self.batch_size])
        ]

    def _answers(self, images: Sequence[np.ndarray]) -> list[MaskedInstances | str]:
        """The checked answers to one batch; a reason in the place of one that fails alone."""
        try:
            with self._time_limit():
                answers = self.segmenter.predict([np.array(image, order="C") for image in images])
                num_answers = len(answers) if isinstance(answers, Sequence) else -1
                if num_answers != len(images):
                    given = type(answers).__name__ if num_answers < 0 else f"list of {num_answers}"
                    raise AnswerError(f"it gave a {given} for {len(images)} images; a list of as many is wanted")
            results = [self._checked(answer, image.shape[:2]) for answer, image in zip(answers, images)]
            if len(images) == 1 or not any(isinstance(result, str) for result in results):
                return results
        except RunFault:
            raise
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, AnswerError) else in_words(error)
            is_lost = isinstance(error, torch.AcceleratorError)
            ran_out = isinstance(error, torch.OutOfMemoryError)
        else:
            return [
                each if not isinstance(each, str) else self._answers([image])[0] for each, image in zip(results, images)
            ]
        if is_lost:
            self.give_up(f"the GPU failed: {reason}")
        if ran_out:
            torch.cuda.empty_cache()
        if len(images) == 1:
            return [reason]
        half = len(images) // 2
        return self._answers(images[:half]) + self._answers(images[half:])

    def _checked(self, answer: object, image_size: tuple[int, int]) -> MaskedInstances | str:
        try:
            return to_masked(answer, [category.name for category in self.categories], image_size, self.segment)
        except AnswerError as error:
            return str(error)

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Ends the process where what is inside takes longer than a call may: no thread can be stopped otherwise."""
        timer = threading.Timer(self.timeout_s, lambda: self.give_up(f"it took longer than {self.timeout_s:g} s"))
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(self.timeout_s + GRACE_S, file=2, exit=True)
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()
