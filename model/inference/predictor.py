"""Predictor: a network prepared for inference; images in, detections as NumPy arrays out, masks not pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import transform
from model.dense_parts import DenseParts
from model.heads.boxes import clip_to_sizes
from model.inference import openvino_engine
from model.inference.fuse import for_prediction, without_dense_layers
from model.inference.mask_rle import Runs, place, trace_runs
from model.inference.openvino_engine import EngineError
from model.inference.prefetch import Image, to_tensor
from model.network import MaskRCNN, NonFiniteOutput
from model.spec import ModelSpec
from model.transfers import row_of_each, to_device, to_host, upload


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first. With N = 0 every array has a first axis of 0.

    Attributes:
        boxes: float32 [N, 4], XYXY, half-open, pixels of the original image, inside it.
        labels: int64 [N], 1..K.
        scores: float32 [N], 0..1.
        mask_probs: float32 [N, M, M], 0..1: the mask of the detection's class over its box, not pasted into the image.
            M = 0 without a mask head.
        keypoints: float32 [N, P, 3] (x, y in pixels of the original image, 1), or None without a keypoint head.
        runs: Run lengths of the pasted masks, see `model.inference.mask_rle.Runs`, where they were asked for;
            `mask_probs` is then empty, [N, 0, 0].
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    mask_probs: np.ndarray
    keypoints: np.ndarray | None
    runs: Runs | None = None


_IMAGE_TYPES = (np.uint8, np.float32, torch.uint8, torch.float32)

MODES = ("exact", "fast", "int8")
"""What users choose the precision of a prediction by, see `native_precision`."""


def native_dtype(mode: str, device: str | torch.device) -> tuple[torch.dtype, str | None]:
    """The dtype that torch computes in on a device, and for "fast" the reason where that is not bfloat16 (else None).

    Raises:
        ValueError: `mode` is none of `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    if mode != "fast":
        return torch.float32, None
    if torch.device(device).type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        has_it = features.get("avx512_bf16", False) or features.get("amx_tile", False)
    if has_it:
        return torch.bfloat16, None
    kind = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "this machine's processor"
    return torch.float32, f"{kind} does not compute in bfloat16, so the network stays in float32"


PRECISIONS = ("float32", "bfloat16", "int8")
"""What `native_precision` gives."""


def native_precision(mode: str, device: str | torch.device) -> tuple[str, str | None]:
    """The precision that a mode computes in on a device, and a note where that is slower than its name promises.

    Raises:
        ValueError: `mode` is none of `MODES`.
    """
    dtype, note = native_dtype(mode, device)
    if mode != "int8":
        return str(dtype).removeprefix("torch."), note
    features = torch.cpu.get_capabilities()
    has_vnni = any(features.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    if has_vnni or features.get("architecture") != "x86_64":
        return "int8", None
    return "int8", "this machine's processor has no VNNI, so int8 is some 1.4 times as fast as exact, not several times"


ENGINES = ("torch", "openvino")
"""Names of what runs a network's dense parts, see `model.dense_parts`."""


def native_engine(precision: str, device: str | torch.device) -> str:
    """The engine that measures faster: OpenVINO in float32 on a CPU with AVX-512 where it is installed, else torch.

    With AVX2 alone, torch with the convolutions of `model.inference.fuse` is faster; in bfloat16 it is as fast. Only
    OpenVINO computes in int8.
    """
    if precision == "int8":
        return "openvino"
    if torch.device(device).type != "cpu" or precision != "float32" or not openvino_engine.is_installed():
        return "torch"
    return "openvino" if torch.cpu.get_capabilities().get("avx512_f", False) else "torch"


def check_engine(engine: str, precision: str, device: str | torch.device) -> None:
    """Raises EngineError where this machine cannot compute with the engine in the precision on the device.

    OpenVINO itself takes float32 in silence where the processor does not compute in bfloat16.
    """
    if engine not in ENGINES:
        raise EngineError(f"{engine!r} is not allowed; allowed is {' or '.join(ENGINES)}")
    if engine == "torch" and precision == "int8":
        raise EngineError("torch does not compute in int8; allowed is openvino")
    if engine == "torch":
        return
    if torch.device(device).type != "cpu":
        raise EngineError("openvino computes on CPUs only; allowed on a GPU is the engine torch")
    if not openvino_engine.is_installed():
        raise EngineError("openvino is not installed on this machine; allowed here is the engine torch")
    if not openvino_engine.computes_in(precision):
        raise EngineError(
            f"openvino does not compute in {precision} on this machine's processor; allowed here is the engine torch, "
            "or the precision float32"
        )


def check_int8(int8: Mapping[str, bytes]) -> None:
    """Raises EngineError where mode int8 cannot compute: without OpenVINO, or a checkpoint that was not quantised.

    Args:
        int8: `model.checkpoint.Checkpoint.int8`.
    """
    if not openvino_engine.is_installed():
        raise EngineError("mode int8: OpenVINO is not installed here; allowed without it are the modes exact and fast")
    if not int8:
        raise EngineError(
            "mode int8: the checkpoint was not quantised; allowed are the modes exact and fast, and int8 with what "
            "`maskfleet quantize` makes of it"
        )


class Predictor:
    """A copy of a network prepared for prediction on a device.

    "exact" finds the detections of the network's own evaluation forward, which is torchvision's: boxes within 0.05 px
    and scores within 1e-3. Batch norms are folded, and an engine may sum in another order, which moves boxes by some
    0.001 px. "fast" computes in bfloat16. An image's detections do not depend on the other images of its batch: only
    images of one padded size share a network call.

    Args:
        model: Not changed; a copy of it predicts.
        spec: The spec it was built from.
        device: Device of the copy.
        score_threshold: Lowest score of a detection, of all classes or of each one; None = that of the spec.
        max_detections: Most detections of an image; None = that of the spec.
        dtype: float32 is "exact", bfloat16 "fast", see `native_dtype`. Of torch's parts; others take float32.
        parts: What runs the dense parts, from an engine; None: torch.

    Raises:
        ValueError: A threshold out of its range, or another number of them than of classes.
    """

    def __init__(
        self,
        model: MaskRCNN,
        spec: ModelSpec,
        *,
        device: str | torch.device = "cpu",
        score_threshold: float | Sequence[float] | None = None,
        max_detections: int | None = None,
        dtype: torch.dtype = torch.float32,
        parts: DenseParts | None = None,
    ) -> None:
        by_class = score_threshold if isinstance(score_threshold, Sequence) else None
        if by_class is not None:
            if len(by_class) != spec.num_classes or not all(0 <= each <= 1 for each in by_class):
                raise ValueError(f"score_threshold={by_class}: allowed is {spec.num_classes} values from 0 to 1")
            score_threshold = min(by_class)
        changes = {"score_threshold": score_threshold, "max_detections": max_detections}
        self.spec = spec.replace(**{name: value for name, value in changes.items() if value is not None})
        self.device = torch.device(device)
        self.model = for_prediction(model, dtype, self.device) if parts is None else without_dense_layers(model)
        self.parts = parts or self.model.dense_parts()
        self.model.roi_heads.score_thresh = self.spec.score_threshold
        if by_class is not None:
            self.model.roi_heads.class_score_thresh = torch.tensor(by_class, device=self.device)
        self.model.roi_heads.detections_per_img = self.spec.max_detections

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input tensor for an image of this size, whatever else is in its batch."""
        return transform.padded_size(
            height, width, min_size=self.spec.image_min_size, max_size=self.spec.image_max_size
        )

    def batches(self, sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
        """Indices of the images, in batches of at most `batch_size` that share one padded size.

        A pure function of its arguments: padded sizes in order of first appearance, images in their order.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: allowed is at least 1")
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(self.padded_size(*size), []).append(index)
        return [
            group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
        ]

    def predict(
        self,
        images: Sequence[Image],
        sizes: Sequence[tuple[int, int]] | None = None,
        runs_at: float | None = None,
    ) -> list[Detections]:
        """The detections of each image, by one call of the network; no images give no detections.

        Args:
            images: [H, W, C] arrays, or tensors from `model.inference.prefetch`, RGB first where C is 3 or more; uint8,
                or float32 in 0..1 (not divided by 255).
            sizes: (height, width) of the original images, all of one padded size. Where they differ from those of
                `images`, these are smaller versions, and are resized to the size that the originals would be resized
                to. None: the images are the originals.
            runs_at: If given, the detections have `runs`, the run lengths of the pasted masks, instead of
                `mask_probs`: a pixel is inside where its interpolated probability is at least this.

        Raises:
            ValueError: An array of another type or shape, or of another padded size than the first.
            NonFiniteOutput: The network gave NaN or infinity.
        """
        if not images:
            return []
        sizes = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else sizes
        self._check(images, sizes)
        with torch.inference_mode(), without_tf32(self.device, self.model.compute_dtype):
            planes = (upload(to_tensor(image), self.device).permute(2, 0, 1) for image in images)
            outputs, resized_sizes = self.model.detect(planes, sizes, self.parts)
            return _to_detections(outputs, resized_sizes, sizes, runs_at)

    def predict_or_reasons(
        self,
        images: Sequence[Image],
        sizes: Sequence[tuple[int, int]] | None = None,
        runs_at: float | None = None,
    ) -> list[Detections | str]:
        """As `predict`; a batch that does not fit in memory, or is not finite, is halved until one image fails alone.

        The reason why it fails then stands in the place of its detections.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else sizes
        try:
            return list(self.predict(images, sizes, runs_at))
        except (torch.OutOfMemoryError, NonFiniteOutput) as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(images) == 1:
                return [f"{type(error).__name__}: {error}"]
        half = len(images) // 2
        first = self.predict_or_reasons(images[:half], sizes[:half], runs_at)
        return first + self.predict_or_reasons(images[half:], sizes[half:], runs_at)

    def _check(self, images: Sequence[Image], sizes: Sequence[tuple[int, int]]) -> None:
        for index, image in enumerate(images):
            is_image = image.dtype in _IMAGE_TYPES and image.ndim == 3 and 0 not in image.shape
            if not is_image or image.shape[2] != self.spec.in_channels:
                raise ValueError(
                    f"image {index} is {image.dtype} {list(image.shape)}; "
                    f"allowed is uint8 or float32 [H, W, {self.spec.in_channels}]"
                )
        padded = {self.padded_size(*size) for size in sizes}
        if len(padded) > 1:
            raise ValueError(f"images of one call must share a padded size, not have {sorted(padded)}; see batches()")


def without_tf32(device: torch.device, dtype: torch.dtype = torch.float32) -> AbstractContextManager[None]:
    """A context in which cuDNN does not round float32 to TF32; of other dtypes and devices one that does nothing."""
    if device.type != "cuda" or dtype != torch.float32:
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _to_detections(
    outputs: Sequence[dict[str, Tensor]],
    resized_sizes: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    runs_at: float | None,
) -> list[Detections]:
    """The detections of a batch in pixels of the originals: all that the host needs of them in one transfer."""
    counts = [len(output["scores"]) for output in outputs]
    fields = {
        name: torch.cat([output[name] for output in outputs])
        for name in ("boxes", "labels", "scores", "masks", "keypoints")
        if name in outputs[0]
    }
    boxes = fields["boxes"]
    image = row_of_each(counts, boxes.device)
    originals, resized = (to_device(each, boxes.device, torch.float32) for each in (sizes, resized_sizes))
    scale = (originals / resized).flip(1)[image]  # of x and y
    no_masks = boxes.new_zeros(len(boxes), 0, 0)
    results = {
        "boxes": clip_to_sizes(boxes * torch.cat([scale, scale], dim=1), originals[image]).float(),
        "labels": fields["labels"],
        "scores": fields["scores"].float(),
        "mask_probs": fields["masks"][:, 0].float() if "masks" in fields else no_masks,
    }
    if "keypoints" in fields:
        points = fields["keypoints"]
        results["keypoints"] = torch.cat([points[..., :2] * scale[:, None], points[..., 2:]], dim=-1).float()
    is_finite = torch.stack([torch.isfinite(tensor).all() for tensor in results.values()])
    mask_probs, placement, num_columns = results["mask_probs"], None, is_finite[:0]
    if runs_at is not None and mask_probs.shape[1]:
        placement = place(results["boxes"], originals[image].long(), mask_probs.shape[1])
        num_columns, results["mask_probs"] = placement.num_columns.sum(), no_masks
    num_columns, is_finite, *tensors = to_host(num_columns, is_finite, *results.values())
    for name, finite in zip(results, is_finite.tolist()):
        if not finite:
            raise NonFiniteOutput(f"the network gave {name} that are not finite")
    ends = np.cumsum(counts)[:-1]
    parts = {name: np.split(tensor.numpy(), ends) for name, tensor in zip(results, tensors)}
    runs: Sequence[Runs | None] = [None] * len(outputs)
    if placement is not None and runs_at is not None:
        size_of_each = [size for size, count in zip(sizes, counts) for _ in range(count)]
        lengths, numbers = trace_runs(mask_probs, placement, size_of_each, int(num_columns), runs_at)
        numbers_of_images = np.split(numbers, ends)
        length_ends = np.cumsum([part.sum() for part in numbers_of_images])[:-1]
        runs = list(zip(np.split(lengths, length_ends), numbers_of_images))
    return [
        Detections(
            boxes=parts["boxes"][index],
            labels=parts["labels"][index],
            scores=parts["scores"][index],
            mask_probs=parts["mask_probs"][index],
            keypoints=parts["keypoints"][index] if "keypoints" in parts else None,
            runs=runs[index],
        )
        for index in range(len(outputs))
    ]
