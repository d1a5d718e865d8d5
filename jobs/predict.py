"""`maskfleet predict` and `load_predictor`: instances of a few photos, in this process, without a cluster."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.checkpoints import open_checkpoint
from jobs.config.load import ConfigError
from jobs.config.predict import PredictConfig
from model.checkpoint import Checkpoint
from model.inference.openvino_engine import EngineError
from model.inference.predictor import check_engine, check_int8
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.bulk.photos import PhotoPredictor, PhotoResult, computed_on, to_frames
from pipeline.results.render import overlay
from pipeline.schema import OK, SCHEMA_VERSION
from pipeline.storage.files import Location
from pipeline.storage.uri import base_name
from pipeline.thresholds import read_thresholds, thresholds_by_label

_TABLE_ROWS = 20  # photos that the printed table lists


def load_predictor(
    checkpoint: str | os.PathLike[str],
    *,
    score_threshold: float = 0.5,
    score_thresholds: Mapping[str, float] | str | None = None,
    max_detections: int = 100,
    mask_threshold: float = 0.5,
    mode: str = "exact",
    engine: str | None = None,
    device: str | None = None,
    network: str | None = None,
    classes: Sequence[str] | None = None,
) -> PhotoPredictor:
    """A predictor to call with photos: `load_predictor("coco")("photo.jpg")` is a DataFrame of instances.

    Args:
        checkpoint: what `model.checkpoint` takes: a checkpoint folder, a training output, "coco", "torchvision:NAME"
            or a file of weights; local or in a bucket.
        score_threshold: detections with a lower score are dropped.
        score_thresholds: those of some classes by name, in place of score_threshold; or a file of them, as
            `maskfleet evaluate` writes it.
        max_detections: detections of one photo, at most.
        mask_threshold: probability from which a pixel belongs to a mask.
        mode: "exact"; "fast", which computes in bfloat16 where the hardware does; or "int8", on the CPU, of a
            checkpoint that `maskfleet quantize` has made.
        engine: "torch" or "openvino", see `pipeline.bulk.photos.PhotoPredictor`.
        device: "cuda" or "cpu"; None takes a GPU where there is one.
        network, classes: for a file of weights, see `model.weights.published.checkpoint_from_weights`.

    Raises:
        CheckpointError: no such checkpoint or weights, or damaged ones.
        ValueError: a setting out of its range, or an engine that this machine does not have.
    """
    return PhotoPredictor(
        open_checkpoint(os.fspath(checkpoint), network, classes),
        device=device,
        mode=mode,
        engine=engine,
        score_threshold=score_threshold,
        score_thresholds=read_thresholds(score_thresholds or {}),
        max_detections=max_detections,
        mask_threshold=mask_threshold,
    )


@dataclass(frozen=True)
class PredictPlan:
    """A checked configuration: photos as paths or URIs, sorted within each folder, checkpoint and thresholds."""

    config: PredictConfig
    photos: tuple[str, ...]
    checkpoint: Checkpoint
    score_thresholds: Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """The tables of the photos, see `pipeline.schema`, and where they were written."""

    images: pd.DataFrame
    instances: pd.DataFrame
    output_uri: str

    @property
    def num_failed(self) -> int:
        """Photos whose status is not ok."""
        return int((self.images["status"] != OK).sum())


def prepare_predict(config: PredictConfig, photos: Sequence[str]) -> PredictPlan:
    """Loads the checkpoint for the photos that `find_photos` has found; writes nothing.

    Raises:
        CheckpointError: no such checkpoint or weights, or damaged ones.
        EngineError: int8 without OpenVINO, or of a checkpoint that was not quantised.
        ValueError: thresholds of a class that the model does not have, no such file of them, or an engine that this
            machine does not have.
    """
    device, precision = computed_on(config.predict.mode, config.predict.device)
    try:
        if precision != "int8":  # which the checkpoint has to have
            check_engine(config.predict.engine or "torch", precision, device)
    except EngineError as error:
        raise ConfigError(f"predict.engine: {error}") from None
    checkpoint = open_checkpoint(config.model.checkpoint, config.model.network, config.model.classes, config.storage)
    thresholds = read_thresholds(config.predict.score_thresholds, config.storage)
    names = [category.name for category in checkpoint.categories]
    thresholds_by_label(names, config.predict.score_threshold, thresholds)  # refuses unknown names
    if precision == "int8":
        check_int8(checkpoint.int8)
    return PredictPlan(config, tuple(photos), checkpoint, thresholds)


def run_predict(plan: PredictPlan, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Prediction:
    """Predicts the photos and writes pictures and tables.

    Args:
        plan: the checked configuration.
        on_progress: called after each photo with the number of those done, and of all.

    Raises:
        OSError: the output cannot be written.
    """
    config, settings, checkpoint = plan.config, plan.config.predict, plan.checkpoint
    predictor = PhotoPredictor(
        checkpoint,
        device=settings.device,
        mode=settings.mode,
        engine=settings.engine,
        score_threshold=settings.score_threshold,
        score_thresholds=plan.score_thresholds,
        max_detections=settings.max_detections,
        mask_threshold=settings.mask_threshold,
        limits=config.decode,
        storage=config.storage,
    )
    output = Location(config.output.uri, config.storage)
    rows: list[ImageResult] = []
    names: set[str] = set()
    for result in predictor.iter_results(plan.photos):
        if config.output.overlays and result.pixels is not None:
            name = _free_name(base_name(result.row.image.image_id), names)
            (output / name).write_bytes(_draw(result))
        rows.append(result.row)
        on_progress(len(rows), len(plan.photos))
    metadata = {"maskfleet.schema_version": str(SCHEMA_VERSION), "maskfleet.model_sha256": checkpoint.sha256}
    for table_name, table in zip(("images", "instances"), to_tables(rows, shard=0, run_id="")):
        (output / f"{table_name}.parquet").write_bytes(to_parquet(table, metadata))
    return Prediction(*to_frames(rows), config.output.uri)


def to_rich_table(prediction: Prediction) -> Table:
    """The photos, their instances by class, and the best score; of many photos the first."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("photo", "pixels", "instances", "best score"):
        table.add_column(title, overflow="fold")
    by_photo = dict(tuple(prediction.instances.groupby("image_id")))
    for image in prediction.images.head(_TABLE_ROWS).itertuples():
        if image.status != OK:
            table.add_row(image.image_id, "", f"{image.status}: {image.error}", "")
            continue
        found = by_photo.get(image.image_id)
        classes = (
            "none"
            if found is None
            else ", ".join(f"{category} {count}" for category, count in found["category"].value_counts().items())
        )
        best = "" if found is None else f"{found['score'].max():.2f}"
        table.add_row(image.image_id, f"{image.width:.0f} x {image.height:.0f}", classes, best)
    return table


def _draw(result: PhotoResult) -> bytes:
    """The photo with its instances drawn on it, as the bytes of a PNG."""
    assert result.pixels is not None
    _, instances = to_frames([result.row])
    buffer = io.BytesIO()
    overlay(result.pixels, instances).save(buffer, "PNG")
    return buffer.getvalue()


def _free_name(name: str, names: set[str]) -> str:
    """A file name for a photo's picture that no earlier photo of the call has."""
    stem, number = name.rpartition(".")[0] or name, 1
    free = f"{stem}.png"
    while free in names:
        number += 1
        free = f"{stem}_{number}.png"
    names.add(free)
    return free
