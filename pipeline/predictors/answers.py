"""Answers of a user's predictor: checks `Instances` against their image, and compresses their masks at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.images.slices import MaskedInstances
from pipeline.masks.rle import encode_mask, encode_roi_masks, rle_areas, rle_bbox, rle_in_image, runs_to_rle
from pipeline.predictors.contract import Instances
from pipeline.run_spec import SegmentSpec
from pipeline.thresholds import thresholds_by_label

MASKS = ("mask_probs", "masks", "rles")


class AnswerError(ValueError):
    """A predictor's answer breaks its contract; the message says where, what it is, and what is wanted."""


def to_masked(
    answer: Any, classes: Sequence[str], image_size: tuple[int, int], segment: SegmentSpec
) -> MaskedInstances:
    """The instances of one image that are kept, best score first, with masks as COCO's compressed RLE.

    Args:
        answer: what the predictor gave for the image: `Instances`.
        classes: names of the classes, in the order of their labels 1..K.
        image_size: (height, width) of the image, in pixels.
        segment: which scores are kept, how many instances, and where probabilities are cut.

    Returns:
        Boxes XYXY in pixels of the image, inside it; empty arrays at N = 0.

    Raises:
        AnswerError: the answer breaks the contract of `Instances`.
    """
    if not isinstance(answer, Instances):
        raise AnswerError(f"it gave a {type(answer).__name__} for an image; maskfleet.Instances is wanted")
    num_classes = len(classes)
    scores = _finite("scores", answer.scores, (None,))
    count = len(scores)
    if count and not (scores.min() >= 0 and scores.max() <= 1):
        raise AnswerError(f"scores has a value of {_outlier(scores, 0, 1)}; 0..1 is wanted")
    labels = _array("labels", answer.labels, (count,))
    if count and labels.dtype.kind not in "iu":
        raise AnswerError(f"labels is {labels.dtype}; whole numbers are wanted")
    if count and not (labels.min() >= 1 and labels.max() <= num_classes):
        raise AnswerError(f"labels has a value of {_outlier(labels, 1, num_classes)}; 1..{num_classes} is wanted")
    given = [name for name in MASKS if getattr(answer, name) is not None]
    if len(given) != 1:
        raise AnswerError(f"{' and '.join(given) or 'none'} of {', '.join(MASKS)} is given; one of them is wanted")
    boxes = None if answer.boxes is None else _check_boxes(answer.boxes, count, image_size)
    best = np.argsort(-scores, kind="stable")
    by_label = thresholds_by_label(classes, segment.score_threshold or 0.0, segment.score_thresholds)
    thresholds = np.broadcast_to(np.asarray(by_label, np.float32), len(classes))
    kept = best[scores[best] >= thresholds[labels[best].astype(np.int64) - 1]][: segment.max_detections]
    counts = _counts(answer, given[0], boxes, kept, count, image_size, segment.mask_threshold)
    if boxes is None:
        corners = rle_bbox(counts, *image_size)
        corners[:, 2:] += corners[:, :2]
    else:
        height, width = image_size
        corners = np.clip(boxes[kept], 0, np.array([width, height, width, height], np.float32))
    return MaskedInstances(labels[kept].astype(np.int64), scores[kept], corners, counts, rle_areas(counts), None)


def _check_boxes(value: Any, count: int, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes as float32 [N, 4], XYXY."""
    boxes, (height, width) = _finite("boxes", value, (count, 4)), image_size
    x1, y1, x2, y2 = boxes.T
    for wrong, reason in (
        ((x1 > x2) | (y1 > y2), "XYXY with x1 <= x2 and y1 <= y2 is wanted"),
        (
            (x1 > width) | (y1 > height) | (x2 < 0) | (y2 < 0),
            f"which is outside of the image of {height} x {width} px; its own pixels are wanted",
        ),
    ):
        if wrong.any():
            index = int(wrong.argmax())
            raise AnswerError(f"boxes[{index}] is {[round(float(side), 2) for side in boxes[index]]}; {reason}")
    return boxes


def _counts(
    answer: Instances,
    form: str,
    boxes: np.ndarray | None,
    kept: np.ndarray,
    count: int,
    image_size: tuple[int, int],
    threshold: float,
) -> list[str]:
    """The masks of the kept instances as compressed strings."""
    if form == "rles":
        rles = answer.rles
        if isinstance(rles, str | bytes) or not isinstance(rles, Sequence) or len(rles) != count:
            number = f"{len(rles)} entries" if isinstance(rles, list | tuple) else f"a {type(rles).__name__}"
            raise AnswerError(f"rles is {number}; a list of {count} is wanted, as many as scores")
        return [_to_counts(f"rles[{index}]", rles[index], image_size) for index in kept.tolist()]
    if form == "mask_probs":
        if boxes is None:
            raise AnswerError("mask_probs is given without boxes; a mask over each box needs its box")
        probs = _finite(form, answer.mask_probs, (count, None, None))
        if count and (probs.shape[1] != probs.shape[2] or not probs.shape[1]):
            raise AnswerError(f"mask_probs has the shape {list(probs.shape)}; [N, M, M] is wanted")
        if count and not (probs.min() >= 0 and probs.max() <= 1):
            raise AnswerError(f"mask_probs has a value of {_outlier(probs, 0, 1)}; 0..1 is wanted")
        return encode_roi_masks(probs[kept], boxes[kept], image_size, threshold) if len(kept) else []
    masks = _array(form, answer.masks, (count, *image_size))
    if count and masks.dtype not in (np.bool_, np.uint8):
        raise AnswerError(f"masks is {masks.dtype}; bool or uint8 is wanted")
    return [encode_mask(masks[index]) for index in kept.tolist()]


def _to_counts(name: str, rle: Any, image_size: tuple[int, int]) -> str:
    """The compressed string of one mask in any form of COCO's RLE, checked and in its shortest form."""
    height, width = image_size
    if isinstance(rle, dict):
        size = rle.get("size")
        if not isinstance(size, Iterable) or list(size) != [height, width]:
            raise AnswerError(f"{name} has the size {size}; the image's {[height, width]} is wanted")
        rle = rle.get("counts")
    try:
        counts = rle if isinstance(rle, str | bytes) else runs_to_rle(rle, height, width)
        return rle_in_image(counts, (0, 0, width, height), image_size)
    except (ValueError, TypeError) as error:
        raise AnswerError(f"{name} is no RLE of an image of {height} x {width} px: {error}") from None


def _finite(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Real numbers of a shape as a float32 array, all of them finite."""
    numbers = _array(name, value, shape)
    if numbers.size and numbers.dtype.kind not in "fiu":
        raise AnswerError(f"{name} is {numbers.dtype}; real numbers are wanted")
    if numbers.size and not np.isfinite(numbers).all():
        raise AnswerError(f"{name} has a value that is not finite")
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise AnswerError(f"{name} has a value of {_outlier(numbers, -3e38, 3e38)}, which is beyond float32")
    return narrow


def _array(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array, a tensor on any device or nested lists as an array of this shape; None is any length."""
    if hasattr(value, "detach"):  # a tensor; torch itself is not needed
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise AnswerError(f"{name} is no array: {error}") from None
    if value is None or array.dtype.kind == "O":
        raise AnswerError(f"{name} is a {type(value).__name__}; an array of numbers is wanted")
    if array.size == 0 and shape[0] in (0, None):
        return np.zeros([length or 0 for length in shape], array.dtype)
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        wanted = ", ".join("M" if length is None else str(length) for length in shape)
        raise AnswerError(f"{name} has the shape {list(array.shape)}; [{wanted}] is wanted")
    return array


def _outlier(values: np.ndarray, low: float, high: float) -> str:
    """The first value outside of low..high, for a message."""
    return f"{values[(values < low) | (values > high)].flat[0]:g}"
