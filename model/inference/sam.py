"""SAM as a refiner of masks: an image and N boxes in, run lengths of N masks out, traced from SAM's small masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.heads.rpn import NonFiniteOutput
from model.inference.mask_rle import Runs, runs_between
from model.inference.predictor import without_tf32
from model.transfers import to_host
from model.weights.sam import SamWeights, load_sam

_PIECE_PX = 1 << 22  # pixels of a mask that are in memory at once


class SamRefiner:
    """SAM's network on a device, prompted with the boxes of one image at a time.

    Boxes are prompts as transformers' processor makes them of a user's; each gives one mask (`multimask_output=False`:
    a box is no ambiguous prompt). Masks are the pixels of the library's `post_process_masks`, save where an
    interpolated logit lies within rounding of the threshold.

    Args:
        weights: see `model.weights.sam.find_sam`.
        device: 'cuda' or 'cpu'.
        batch_size: boxes in one pass of the mask decoder, at most.
        mask_threshold: a pixel is inside where its probability, the sigmoid of its logit, is above this; 0 takes all
            pixels, 1 none.

    Raises:
        CheckpointError: as `model.weights.sam.load_sam`.
    """

    def __init__(
        self, weights: SamWeights, *, device: str | torch.device, batch_size: int, mask_threshold: float = 0.5
    ) -> None:
        network, processor = load_sam(weights)
        self.longest_side = processor.size["longest_edge"] if weights.kind == "sam" else None  # SAM 2 stretches images
        self.processor, self.device = processor, torch.device(device)
        self.network = network.to(self.device)
        self.batch_size = batch_size
        outside, inside = mask_threshold <= 0, mask_threshold >= 1
        odds = mask_threshold if outside or inside else mask_threshold / (1 - mask_threshold)
        self.threshold = -math.inf if outside else math.inf if inside else math.log(odds)

    def refine(self, image: np.ndarray, boxes: np.ndarray) -> Runs:
        """The run lengths of the boxes' masks, in their order; N = 0 gives none, and the network is not asked.

        Args:
            image: uint8 RGB [H, W, 3].
            boxes: float32 [N, 4], XYXY, half-open, in pixels of the image.

        Raises:
            ValueError: The image is so narrow that SAM would resize its short side to nothing.
            NonFiniteOutput: The network gave NaN or infinity.
            torch.OutOfMemoryError: The image, or a box alone, does not fit; batches of boxes are halved before.
        """
        if not len(boxes):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        height, width = image.shape[:2]
        if self.longest_side is not None and self.longest_side * min(height, width) < 0.5 * max(height, width):
            raise ValueError(
                f"an image of {height} x {width} px is too narrow: its short side would be resized to 0 px"
            )
        with torch.inference_mode(), without_tf32(self.device):
            own = np.require(image, requirements=["C", "W"])  # torch warns of arrays that it may not write to
            inputs = self.processor(
                images=[own], input_data_format="channels_last", return_tensors="pt", device=self.device
            )
            pixels = inputs["pixel_values"]
            padded: tuple[int, int] = tuple(pixels.shape[2:])
            # SAM's images keep their proportions and are padded, SAM 2's are stretched.
            is_padded = "reshaped_input_sizes" in inputs
            resized = tuple(inputs["reshaped_input_sizes"][0].tolist()) if is_padded else padded
            scale = np.array([resized[1] / width, resized[0] / height] * 2)
            prompts = torch.from_numpy(boxes.astype(np.float64) * scale).to(self.device)
            embeddings = self.network.get_image_embeddings(pixels)
            frame = Frame((height, width), resized, padded if is_padded else None)
            parts = [
                part
                for start in range(0, len(prompts), self.batch_size)
                for part in self._decode(embeddings, prompts[start : start + self.batch_size], frame)
            ]
        return np.concatenate([lengths for lengths, _ in parts]), np.concatenate([counts for _, counts in parts])

    def _decode(self, embeddings: Any, prompts: Tensor, frame: Frame) -> list[Runs]:
        """The masks of a batch of boxes; a batch that does not fit in memory is halved."""
        try:
            outputs = self.network(image_embeddings=embeddings, input_boxes=prompts[None], multimask_output=False)
            logits = outputs.pred_masks[0, :, 0].float()
            if not torch.isfinite(logits).all():
                raise NonFiniteOutput("SAM gave masks that are not finite")
            return [trace_logits(logits, frame, self.threshold)]
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(prompts) // 2
        return self._decode(embeddings, prompts[:half], frame) + self._decode(embeddings, prompts[half:], frame)


@dataclass(frozen=True)
class Frame:
    """How SAM's square input lies over an image: all sizes are (height, width) in pixels.

    Attributes:
        image: of the original.
        resized: of the original as it was resized for the network.
        padded: of the network's input, of which the resized image is the upper left part; None where it is all of it.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int] | None

    def weights(self, axis: int, side: int, device: torch.device) -> Tensor:
        """The matrix [length of the image, side] that resizes one axis of a small mask to the image's.

        Bilinear interpolation is linear, and treats its axes one after the other. So the library's way, from the small
        mask to the padded image, cut to the resized one, and from that to the original, is one matrix on either side.
        """
        resize = torch.eye(side, device=device)[None]
        if self.padded is not None:
            resize = F.interpolate(resize, self.padded[axis], mode="linear")[..., : self.resized[axis]]
        return F.interpolate(resize, self.image[axis], mode="linear")[0].T.contiguous()


class _Axis:
    """One axis of a frame: the weights of its pixels, and which values of a small mask each pixel is made of."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        (used,) = to_host(weights != 0)
        flags = used.numpy()
        self.first = flags.argmax(axis=1)  # of each pixel, the first value that it is made of; ascending
        self.last = flags.shape[1] - 1 - flags[:, ::-1].argmax(axis=1)

    def reached(self, hits: np.ndarray) -> tuple[int, int]:
        """The range of pixels that are made of any value from the first hit to the last; bool [side], not all False."""
        values = np.flatnonzero(hits)
        start = int(np.searchsorted(self.last, values[0]))
        return start, max(int(np.searchsorted(self.first, values[-1], side="right")), start)

    def values(self, start: int, end: int) -> slice:
        """The values of a small mask that a range of pixels, not empty, is made of."""
        return slice(int(self.first[start]), int(self.last[end - 1]) + 1)


def trace_logits(logits: Tensor, frame: Frame, threshold: float) -> Runs:
    """The run lengths of masks that are given as small maps of logits over SAM's input.

    An interpolated logit lies between those that it is made of. So no more of a mask is enlarged than what those above
    the threshold reach, mask by mask, and of a large one some columns at a time.

    Args:
        logits: float32 [N, side, side], finite.
        frame: how they lie over the image.
        threshold: a pixel is inside where its interpolated logit is above this.
    """
    count, side = logits.shape[:2]
    height, width = frame.image
    rows, columns = (_Axis(frame.weights(axis, side, logits.device)) for axis in (0, 1))
    above = logits > threshold
    hit_rows, hit_columns = to_host(above.any(2), above.any(1))
    changes, counts = [np.zeros(0, np.int64)], np.zeros(count, np.int64)
    for index in range(count):
        if not hit_rows[index].any():
            continue
        top, bottom = rows.reached(hit_rows[index].numpy())
        left, right = columns.reached(hit_columns[index].numpy())
        if top == bottom or left == right:  # between two pixels of a small image
            continue
        low_rows, low_columns = rows.values(top, bottom), columns.values(left, right)
        resized = logits[index, low_rows, low_columns].T @ rows.weights[top:bottom, low_rows].T
        step = max(1, _PIECE_PX // (bottom - top))
        positions = []
        for start in range(left, right, step):
            piece = columns.weights[start : min(start + step, right), low_columns] @ resized
            inside = F.pad(piece > threshold, (1, 1))
            column, row = (inside[:, 1:] != inside[:, :-1]).nonzero().unbind(1)
            positions.append((start + column) * height + top + row)
        (found,) = to_host(torch.cat(positions))
        changes.append(_joined(found.numpy(), height * width))
        counts[index] = len(changes[-1])
    return runs_between(np.concatenate(changes), counts, np.full(count, height * width, np.int64))


def _joined(positions: np.ndarray, num_pixels: int) -> np.ndarray:
    """The places where a mask begins or ends, without those where it ends with a column and begins with the next."""
    is_twin = np.zeros(len(positions), bool)
    is_twin[1:] = positions[1:] == positions[:-1]
    is_twin[:-1] |= is_twin[1:]
    return positions[~is_twin & (positions < num_pixels)]
