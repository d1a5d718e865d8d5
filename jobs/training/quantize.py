"""`maskfleet quantize`: makes a checkpoint that mode int8 computes with, and measures what that costs in AP."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from jobs.checkpoints import open_checkpoint, place_checkpoint
from jobs.config.load import ConfigError
from jobs.config.predict import list_photos
from jobs.config.quantize import QuantizeConfig
from jobs.progress import ProgressLine
from jobs.terminal import counted
from jobs.training.validation import Validation, evaluate_shares
from model.categories import Category
from model.checkpoint import Checkpoint, save_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER
from model.inference.openvino_engine import load_files
from model.inference.predictor import native_precision
from model.inference.quantize import TITLES, QuantizedParts, check_quantizer, quantize_parts
from model.network import MaskRCNN
from pipeline.bulk.photos import iter_decoded
from pipeline.dataset.class_map import align_categories
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotatedSet
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import absolute_uri

_FEW_PHOTOS = 50
_KINDS = {"bbox": "bbox_AP", "segm": "segm_AP"}  # what is measured: kind of IoU -> figure of a validation
# Heads that are left in float32, in turn, where int8 costs too much AP: the network's bulk, its backbone, stays int8.
_ATTEMPTS: tuple[tuple[str, ...], ...] = ((), ("box",), ("mask",), ("box", "mask", "keypoint"))


@dataclass(frozen=True)
class QuantizePlan:
    """A checked configuration: the checkpoint, photos to calibrate with, and the validation set where there is one."""

    config: QuantizeConfig
    checkpoint: Checkpoint
    photos: tuple[str, ...]
    annotated: AnnotatedSet | None

    @property
    def notes(self) -> list[str]:
        """Sentences for the user before anything starts."""
        notes = []
        if len(self.photos) < _FEW_PHOTOS:
            notes.append(f"{counted(len(self.photos), 'photo')} to calibrate with are few; some hundred are better")
        if self.annotated is None:
            notes.append("data.val is not set, so what int8 costs in AP is not measured")
        if (note := native_precision("int8", "cpu")[1]) is not None:
            notes.append(note)
        return notes

    def describe(self) -> str:
        """What would be done, for a dry run."""
        measured = "" if self.annotated is None else f", measure AP on {counted(len(self.annotated), 'image')}"
        return (
            f"would calibrate {self.config.model.checkpoint} with {counted(len(self.photos), 'photo')}{measured}, "
            f"and write {self.config.output.uri}"
        )


@dataclass(frozen=True)
class Quantized:
    """What became of a network.

    Attributes:
        parts: 'int8' or 'float32' of each dense part, by its title.
        before, after: AP (0..1) by kind of IoU, in float32 and in int8; {} where it was not measured.
        reason: why nothing was written; None where the checkpoint was.
    """

    parts: dict[str, str]
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def drop(self) -> float:
        """The most points (0 to 100) of AP that int8 costs; negative where AP is higher in int8."""
        return max((100 * (self.before[kind] - self.after[kind]) for kind in self.before), default=0.0)

    def describe(self) -> str:
        """The parts by precision, and AP before and after, a line each."""
        lines = []
        for precision in ("int8", "float32"):
            if titles := [title for title, each in self.parts.items() if each == precision]:
                lines.append(f"{precision}: {', '.join(titles)}")
        for kind, before in self.before.items():
            points, points_before = 100 * self.after[kind], 100 * before
            change = points - points_before
            lines.append(f"{kind} AP: {points_before:.2f} in float32, {points:.2f} in int8 ({change:+.2f})")
        return "\n".join(lines)


def prepare_quantize(config: QuantizeConfig) -> QuantizePlan:
    """Checks everything and loads the checkpoint; writes nothing.

    Raises:
        ConfigError: no photos, or a checkpoint at output.uri already.
        CheckpointError: no such checkpoint or weights, or damaged ones.
        EngineError: NNCF is not installed.
        ValueError: a validation set that cannot be used.
    """
    check_quantizer()
    output_uri = absolute_uri(config.output.uri)
    if open_storage(output_uri, config.storage).exists(CHECKPOINT_MARKER):
        raise ConfigError(f"output.uri: {config.output.uri!r} holds a checkpoint already; choose another place")
    places = config.data.calibration_places
    photos = list_photos("data.calibration", places, output_uri=output_uri, storage=config.storage)
    count = min(len(photos), config.quantize.num_photos)
    chosen = np.linspace(0, len(photos) - 1, count).round().astype(int).tolist()
    model = config.model
    checkpoint = open_checkpoint(model.checkpoint, model.network, model.classes, config.storage)
    annotated = _load_validation_set(config, checkpoint.categories)
    return QuantizePlan(config, checkpoint, tuple(photos[index] for index in chosen), annotated)


def _load_validation_set(config: QuantizeConfig, categories: Sequence[Category]) -> AnnotatedSet | None:
    data = config.data
    if data.val is None:
        return None
    source = AnnotationSource(
        uri=data.val,
        format=data.format,
        image_root=data.val_image_root,
        part="val",
        default_category=data.default_category,
    )
    annotated = load_annotations(source, config.storage, unknown=data.unknown_categories)
    if not len(annotated):
        raise ConfigError(f"data.val: {data.val!r} holds no image; allowed is at least one")
    return align_categories(annotated, categories, unknown=data.unknown_categories)


def run_quantize(plan: QuantizePlan, line: ProgressLine) -> Quantized:
    """Quantises the network, measures it, and writes the checkpoint where it costs no more AP than it may.

    Raises:
        ConfigError: none of the photos can be used.
        EngineError: NNCF fails on the network.
        OSError: the output cannot be written.
    """
    checkpoint, network = plan.checkpoint, plan.checkpoint.build()
    photos = _CalibrationPhotos(plan, line.note)

    def show(what: str, num_done: int, count: int) -> None:
        line.show(f"{what}: {num_done:,}/{count:,}", num_done / count)

    parts = quantize_parts(network, checkpoint.spec, photos, len(plan.photos), show)
    line.note(f"calibrated with {counted(len(photos.uris), 'photo')}")
    left: tuple[str, ...] = ()
    result = Quantized(_precisions(parts, ()))
    if plan.annotated is not None:
        left, result = _measure(plan, network, parts, plan.annotated, line)
    if result.drop > (allowed := plan.config.quantize.max_ap_drop):
        reason = (
            f"int8 costs {result.drop:.2f} points of AP; quantize.max_ap_drop allows {allowed:g}; nothing was written"
        )
        return replace(result, reason=reason)
    progress = {
        **checkpoint.progress,
        "int8_parts": ", ".join(title for title, precision in result.parts.items() if precision == "int8"),
        "int8_photos": len(photos.uris),
        **{f"{kind}_AP_before_int8": value for kind, value in result.before.items()},
        **{f"{kind}_AP_in_int8": value for kind, value in result.after.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(
            folder,
            model=network,
            spec=checkpoint.spec,
            categories=checkpoint.categories,
            progress=progress,
            int8=parts.files(left),
        )
        place_checkpoint(folder, absolute_uri(plan.config.output.uri), plan.config.storage)
    return result


class _CalibrationPhotos:
    """The decoded photos of a plan, each time anew; those that cannot be used are named once, and left out.

    Attributes:
        uris: those that can be used, as far as is known.
    """

    def __init__(self, plan: QuantizePlan, on_note: Callable[[str], None]) -> None:
        self.plan, self.on_note = plan, on_note
        self.uris = list(plan.photos)

    def __iter__(self) -> Iterator[np.ndarray]:
        config, bands = self.plan.config, self.plan.checkpoint.spec.in_channels
        tried, self.uris, fault = self.uris, [], ""
        for image, decoded in iter_decoded(tried, num_bands=bands, limits=config.decode, storage=config.storage):
            if decoded.image is None:
                fault = f"{image.image_id}: {decoded.status}: {decoded.error}"
                self.on_note(f"left out {fault}")
                continue
            self.uris.append(image.image_id)
            yield decoded.image
        if not self.uris:
            raise ConfigError(f"data.calibration: {counted(len(tried), 'photo')}, and none that can be used; {fault}")


def _precisions(parts: QuantizedParts, left: Sequence[str]) -> dict[str, str]:
    is_int8 = {name: f"{name}.xml" in parts.in_int8 and name not in left for name in parts.names}
    return {TITLES[name]: "int8" if quantized else "float32" for name, quantized in is_int8.items()}


def _measure(
    plan: QuantizePlan, network: MaskRCNN, parts: QuantizedParts, annotated: AnnotatedSet, line: ProgressLine
) -> tuple[tuple[str, ...], Quantized]:
    """The heads left in float32, and the figures: the first attempt that costs little enough, else the least costly."""
    checkpoint, count, num_threads = plan.checkpoint, len(annotated), torch.get_num_threads()
    with Validation(annotated, checkpoint.categories, checkpoint.spec, device=torch.device("cpu")) as validation:

        def measure(left: Sequence[str], title: str) -> dict[str, float]:
            def show(num_done: int) -> None:
                line.show(f"AP {title}: {num_done:,}/{count:,}", num_done / count)

            results = validation.predict(network, load_files(parts.files(left), num_threads), show)
            figures = evaluate_shares([results], validation.truth).overall
            return {kind: figures[name] for kind, name in _KINDS.items() if name in figures}

        before = measure(parts.names, "in float32")
        results: dict[tuple[str, ...], Quantized] = {}
        for attempt in _ATTEMPTS:
            left = tuple(name for name in attempt if f"{name}.xml" in parts.in_int8)
            if left in results:
                continue
            title = " ".join(["in int8", *(f"but for the {TITLES[name]}" for name in left)])
            result = results[left] = Quantized(_precisions(parts, left), before, measure(left, title))
            line.note(f"AP {title}: {-result.drop:+.2f} points")
            if result.drop <= plan.config.quantize.max_ap_drop:
                break
    return min(results.items(), key=lambda item: item[1].drop)
