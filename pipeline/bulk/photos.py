"""Prediction of single photos in this process, without Ray: paths, URIs or arrays in, rows of `instances` out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from PIL import Image

from model.checkpoint import Checkpoint
from model.heads.rpn import NonFiniteOutput
from model.inference.mask_rle import paste_runs
from model.inference.predictor import Detections, native_precision
from pipeline.bulk.encode import ImageResult, encode_instances, to_tables
from pipeline.bulk.fetch import ImageLoader, map_ahead
from pipeline.bulk.predict import build_predictor, engine_of_few
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from pipeline.plan import PlannedImage
from pipeline.schema import OK
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import absolute_uri
from pipeline.thresholds import thresholds_by_label

Photo = str | os.PathLike[str] | np.ndarray | Image.Image

_DECODED_AHEAD = 4
_FEW_PIXELS = 2**21  # of all masks of a photo: torch traces them in a tenth of a second


class PhotoError(ValueError):
    """A photo that cannot be read or predicted; the message names it, its status and the reason."""


@dataclass(frozen=True)
class PhotoResult:
    """A photo's rows (see `pipeline.bulk.encode.ImageResult`), and its upright pixels; None where it was not decoded.

    The pixels are uint8 RGB [H, W, 3], or float32 [H, W, C] for a network of another number of channels.
    """

    row: ImageResult
    pixels: np.ndarray | None


class PhotoPredictor:
    """A checkpoint's network in this process, called with photos.

    Args:
        checkpoint: the network, its weights and its classes.
        device: 'cuda' or 'cpu'; None takes a GPU where there is one.
        mode: 'exact'; 'fast', which computes in bfloat16 where the hardware does; or 'int8', on the CPU, of a
            checkpoint that was quantised.
        engine: 'torch' or 'openvino'; None takes the faster one, but OpenVINO only where the network has been converted
            on this machine, by a run or an earlier call.
        score_threshold: detections with a lower score are dropped.
        score_thresholds: those of some classes by name, in place of score_threshold.
        max_detections: detections of one photo, at most.
        mask_threshold: probability from which a pixel belongs to a mask.
        limits: of decoding.
        storage: how photos in buckets are reached, see `open_storage`.

    Raises:
        CheckpointError: the weights do not belong to their spec.
        ValueError: a setting out of its range, or an engine that this machine does not have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        mode: str = "exact",
        engine: str | None = None,
        score_threshold: float = 0.5,
        score_thresholds: Mapping[str, float] | None = None,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
        limits: DecodeLimits | None = None,
        storage: StorageSettings | None = None,
    ) -> None:
        self.categories = checkpoint.categories
        self.device, precision = computed_on(mode, device)
        self._mask_threshold = mask_threshold
        self._limits, self._storage = limits or DecodeLimits(), storage
        self._num_bands = checkpoint.spec.in_channels
        self._is_first = True  # whether no photo was predicted yet
        self._predictor = build_predictor(
            checkpoint.build(),
            checkpoint.spec,
            checkpoint.sha256,
            engine=engine or engine_of_few(checkpoint, precision, self.device),
            precision=precision,
            device=self.device,
            score_threshold=thresholds_by_label(
                [category.name for category in self.categories], score_threshold, score_thresholds or {}
            ),
            max_detections=max_detections,
            int8=checkpoint.int8,
        )

    def __call__(self, photos: Photo | Iterable[Photo]) -> pd.DataFrame:
        """The instances of one photo or of several, with the columns of a run's `instances` table.

        Args:
            photos: a path, a URI, a uint8 RGB array [H, W, 3] (float32 in 0..1 [H, W, C] for another number of
                channels), a PIL image, or several of them. Files are turned by their EXIF orientation, arrays are
                taken as they are.

        Returns:
            One row for each instance, in the order of the photos, best score first. `image_id` is the path or URI as
            given, and for an array its number ("0", "1", ...). Boxes are half-open XYXY pixels of the upright photo.
            No rows where nothing was found, or no photo given.

        Raises:
            PhotoError: a photo that cannot be read or predicted.
        """
        if isinstance(photos, str | os.PathLike | np.ndarray | Image.Image):
            photos = [photos]
        rows = []
        for result in self.iter_results(photos):
            if result.row.status != OK:
                raise PhotoError(f"{result.row.image.image_id}: {result.row.status}: {result.row.error}")
            rows.append(result.row)
        return to_frames(rows)[1]

    def iter_results(self, photos: Iterable[Photo]) -> Iterator[PhotoResult]:
        """The result of each photo, in order. A bad photo never raises: its row's status says what was wrong.

        Files are read and decoded ahead, in a child process.
        """
        for image, decoded in iter_decoded(
            photos, num_bands=self._num_bands, limits=self._limits, storage=self._storage
        ):
            yield PhotoResult(self._predict(image, decoded), decoded.image)

    def _predict(self, image: PlannedImage, decoded: Decoded) -> ImageResult:
        row = ImageResult(image, decoded.status, decoded.error, decoded.height, decoded.width, decoded.exif_orientation)
        if decoded.image is None:
            return row
        try:
            (detections,) = self._predictor.predict([decoded.image])
            if self._is_first:
                self._is_first, detections = False, self._traced(detections, decoded.size)
        except (torch.OutOfMemoryError, NonFiniteOutput) as error:
            row.status, row.error = "predict_failed", f"{type(error).__name__}: {error}"
            return row
        row.instances = encode_instances(detections, self.categories, decoded.size, self._mask_threshold)
        return row

    def _traced(self, detections: Detections, image_size: tuple[int, int]) -> Detections:
        """The detections with their masks as run lengths by torch, where they cover few pixels.

        One photo alone so does without the compiled encoder, which takes a second to load. The masks are the same.
        """
        num_pixels = np.prod(detections.boxes[:, 2:] - detections.boxes[:, :2], axis=1).sum()
        if not detections.mask_probs.shape[1] or num_pixels > _FEW_PIXELS:
            return detections
        probs, boxes = torch.from_numpy(detections.mask_probs), torch.from_numpy(detections.boxes)
        return replace(detections, runs=paste_runs(probs, boxes, image_size, self._mask_threshold))


def computed_on(mode: str, device: str | None) -> tuple[str, str]:
    """Device and precision of a mode; `device` None takes a GPU where there is one, but the CPU for int8."""
    device = device or ("cuda" if torch.cuda.is_available() and mode != "int8" else "cpu")
    return device, native_precision(mode, device)[0]


def iter_decoded(
    photos: Iterable[Photo], *, num_bands: int, limits: DecodeLimits, storage: StorageSettings | None
) -> Iterator[tuple[PlannedImage, Decoded]]:
    """Each photo, in order, with its pixels or the status that says why there are none.

    Files are read and decoded ahead, in a child process.

    Args:
        photos: as `PhotoPredictor` takes them.
        num_bands: channels that are wanted, see `ImageLoader`.
        limits: of decoding.
        storage: how photos in buckets are reached.
    """
    with DecodePool(1, limits) as pool, ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        loader = ImageLoader(pool=pool, limits=limits, num_bands=num_bands, settings=storage)
        yield from map_ahead(thread, partial(_load, loader), enumerate(photos), lookahead=_DECODED_AHEAD)


def _load(loader: ImageLoader, numbered: tuple[int, Photo]) -> tuple[PlannedImage, Decoded]:
    number, photo = numbered
    if isinstance(photo, Image.Image):
        photo = np.asarray(photo.convert("RGB"))
    if isinstance(photo, np.ndarray):
        is_image = photo.ndim == 3 and photo.shape[2] == loader.num_bands and 0 not in photo.shape
        if not is_image or photo.dtype not in (np.uint8, np.float32):
            fault = f"{photo.dtype} {list(photo.shape)}; allowed is uint8 or float32 [H, W, {loader.num_bands}]"
            return PlannedImage(str(number), ""), Decoded("unsupported_format", fault, None, None, None, None)
        return PlannedImage(str(number), ""), Decoded(OK, None, photo, photo.shape[0], photo.shape[1], None)
    name = os.fspath(photo)
    image = PlannedImage(name, absolute_uri(name))
    return image, loader.load(image)


def to_frames(rows: list[ImageResult]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `images` and the `instances` table of photos, in the photos' order, with a run's columns; `run_id` is ""."""
    images, instances = (table.to_pandas() for table in to_tables(rows, shard=0, run_id=""))
    position = {row.image.image_id: number for number, row in enumerate(rows)}
    by_photo = instances.assign(position=instances["image_id"].map(position))
    instances = by_photo.sort_values(["position", "instance"], kind="stable").drop(columns="position")
    return images, instances.reset_index(drop=True)
