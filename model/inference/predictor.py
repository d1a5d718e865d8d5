"""Predictor: a network prepared for inference; images in, detections as NumPy arrays out, masks not pasted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import transform
from model.dense_parts import DenseParts
from model.inference import openvino_engine
from model.inference.fuse import for_prediction, without_dense_layers
from model.inference.mask_rle import Paste, mask_runs
from model.inference.prefetch import Image, to_tensor
from model.network import MaskRCNN, NonFiniteOutput
from model.spec import ModelSpec
from model.vision import clip_boxes_to_image, resize_boxes, resize_keypoints


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
        runs: (lengths, counts) of the pasted masks as `model.inference.mask_rle.mask_runs` gives them, where they were
            asked for; `mask_probs` is then empty, [N, 0, 0].
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    mask_probs: np.ndarray
    keypoints: np.ndarray | None
    runs: tuple[np.ndarray, ...] | None = None


_IMAGE_TYPES = (np.uint8, np.float32, torch.uint8, torch.float32)

MODES = ("exact", "fast")
"""Names of the precisions of `Predictor`, see `native_dtype`."""


def native_dtype(mode: str, device: str | torch.device) -> tuple[torch.dtype, str | None]:
    """The dtype that a mode computes in on a device, and for "fast" the reason where that is not bfloat16 (else None).

    Raises:
        ValueError: `mode` is none of `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    if mode == "exact":
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


ENGINES = ("torch", "openvino")
"""Names of what runs a network's dense parts, see `model.dense_parts`."""


def native_engine(precision: str, device: str | torch.device) -> str:
    """The engine that measures faster: OpenVINO in float32 on a CPU with AVX-512 where it is installed, else torch.

    With AVX2 alone, torch with the convolutions of `model.inference.fuse` is faster; in bfloat16 it is as fast.
    """
    if torch.device(device).type != "cpu" or precision != "float32" or not openvino_engine.is_installed():
        return "torch"
    return "openvino" if torch.cpu.get_capabilities().get("avx512_f", False) else "torch"


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
        score_threshold: Lowest score of a detection; None = that of the spec.
        max_detections: Most detections of an image; None = that of the spec.
        dtype: float32 is "exact", bfloat16 "fast", see `native_dtype`. Of torch's parts; others take float32.
        parts: What runs the dense parts, from an engine; None: torch.

    Raises:
        ValueError: A threshold out of its range.
    """

    def __init__(
        self,
        model: MaskRCNN,
        spec: ModelSpec,
        *,
        device: str | torch.device = "cpu",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        dtype: torch.dtype = torch.float32,
        parts: DenseParts | None = None,
    ) -> None:
        changes = {"score_threshold": score_threshold, "max_detections": max_detections}
        self.spec = spec.replace(**{name: value for name, value in changes.items() if value is not None})
        self.device = torch.device(device)
        self.model = for_prediction(model, dtype, self.device) if parts is None else without_dense_layers(model)
        self.parts = parts or self.model.dense_parts()
        self.model.roi_heads.score_thresh = self.spec.score_threshold
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
        paste: Paste | None = None,
    ) -> list[Detections]:
        """The detections of each image, by one call of the network; no images give no detections.

        Args:
            images: [H, W, C] arrays, or tensors from `model.inference.prefetch`, RGB first where C is 3 or more; uint8,
                or float32 in 0..1 (not divided by 255).
            sizes: (height, width) of the original images, all of one padded size. Where they differ from those of
                `images`, these are smaller versions, and are resized to the size that the originals would be resized
                to. None: the images are the originals.
            paste: If given, the detections have `runs`, the run lengths of the pasted masks, instead of `mask_probs`.

        Raises:
            ValueError: An array of another type or shape, or of another padded size than the first.
            NonFiniteOutput: The network gave NaN or infinity.
        """
        if not images:
            return []
        sizes = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else sizes
        self._check(images, sizes)
        with torch.inference_mode(), self._no_tf32():
            outputs, resized_sizes = self.model.detect(map(self._to_planes, images), sizes, self.parts)
            return [
                _to_detections(output, resized, original, paste)
                for output, resized, original in zip(outputs, resized_sizes, sizes, strict=True)
            ]

    def _no_tf32(self) -> AbstractContextManager[None]:
        """A context in which cuDNN does not round float32 to TF32."""
        if self.device.type != "cuda" or self.model.compute_dtype != torch.float32:
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

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

    def _to_planes(self, image: Image) -> Tensor:
        # Transferred as bytes and made float32 on the device: a quarter of the traffic.
        planes = to_tensor(image).to(self.device).permute(2, 0, 1)
        return planes.float().div_(255) if planes.dtype == torch.uint8 else planes


def _to_detections(
    output: dict[str, Tensor], resized: tuple[int, int], original: tuple[int, int], paste: Paste | None
) -> Detections:
    order = torch.argsort(output["scores"], descending=True, stable=True)
    boxes = clip_boxes_to_image(resize_boxes(output["boxes"][order], resized, original), original)
    arrays = {
        "boxes": boxes.float(),
        "labels": output["labels"][order],
        "scores": output["scores"][order].float(),
        "mask_probs": output["masks"][order, 0].float() if "masks" in output else boxes.new_zeros(len(boxes), 0, 0),
    }
    keypoints = None
    if "keypoints" in output:
        keypoints = resize_keypoints(output["keypoints"][order], resized, original).float()
    for name, tensor in [*arrays.items(), ("keypoints", keypoints)]:
        if tensor is not None and not torch.isfinite(tensor).all():
            raise NonFiniteOutput(f"the network gave {name} that are not finite")
    runs = None
    if paste is not None and arrays["mask_probs"].shape[1]:
        runs = tuple(part.cpu().numpy() for part in mask_runs(arrays["mask_probs"], arrays["boxes"], original, paste))
        arrays["mask_probs"] = boxes.new_zeros(len(boxes), 0, 0)
    return Detections(
        **{name: tensor.cpu().numpy() for name, tensor in arrays.items()},
        keypoints=None if keypoints is None else keypoints.cpu().numpy(),
        runs=runs,
    )
