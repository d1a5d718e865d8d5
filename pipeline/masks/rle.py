"""COCO run-length encoding (RLE) of masks: encode, decode, merge, areas, boxes and IoU of compressed strings.

Masks leave the model's side as RLE only. Everywhere in this module `counts` is COCO's compressed string for one mask:
the lengths of alternating runs of outside and inside pixels, outside first, column by column (column-major). Each run
from the fourth on is written as the difference to the run two before it, five bits to a character. Sizes are
`height, width` of the original image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A character is 48 + six bits. The sixth says that the number goes on, so the last character must not have it.
_WELL_FORMED = re.compile(r"[0-o]*[0-O]")
_MOST_PIXELS = 2**32 - 1  # pycocotools counts pixels in 32 bits
_FEW_RUNS = 10_000  # written by pycocotools in a millisecond
_LONGEST_NUMBER = 7  # characters of a signed 33-bit difference
_FARTHEST_BOX_PX = 2.0**30  # box corners beyond this come from a broken predictor, and overflow the arithmetic
FARTHEST_POLYGON_PX = 1e6  # pycocotools walks along polygon edges pixel by pixel, outside the image too


def encode_roi_masks(mask_probs: Any, boxes: Any, image_size: tuple[int, int], threshold: float = 0.5) -> list[str]:
    """The masks of one image as `counts`, straight from the mask head's output.

    The result is byte for byte that of torchvision's `paste_masks_in_image` on the CPU, `>= threshold` and
    `pycocotools.mask.encode`. No mask of the image's or the box's size is built: time grows with the number of image
    columns that the boxes cover, memory with the length of the strings.

    Args:
        mask_probs: float32 [N, M, M], numpy array or CPU torch tensor: probabilities 0..1 of the chosen class, rows
            first, as the mask head's sigmoid gives them.
        boxes: [N, 4], numpy array or CPU torch tensor: XYXY, half-open, in pixels of the original image; float32, or
            float64, which is expanded in float64, as torchvision does. They may cross the image's borders or be
            degenerate. A box wholly outside the image has an empty mask (torchvision raises there).
        image_size: (height, width) of the original image.
        threshold: a pixel is inside where its interpolated probability is >= this (compared in float32). At 0 or below,
            the pixels outside the box are inside, too, as in the reference.

    Returns:
        N strings of `counts`. N = 0 gives an empty list.

    Raises:
        ValueError: a wrong shape or dtype, a non-finite probability or box, a box corner beyond 2**30 px, a non-finite
            threshold, or an image without pixels or with 2**32 of them or more; the message names it.

    Runs on one thread and releases the GIL. The first call in a process loads or compiles the kernel; see
    `pipeline.masks.rle_kernel`.
    """
    return encode_roi_masks_and_areas(mask_probs, boxes, image_size, threshold)[0]


def encode_roi_masks_and_areas(
    mask_probs: Any, boxes: Any, image_size: tuple[int, int], threshold: float = 0.5
) -> tuple[list[str], NDArray[np.int64]]:
    """The strings of `encode_roi_masks` and the area of each mask (int64 [N], pixels), at no further cost."""
    masks = _as_array(mask_probs, "mask_probs")
    corners = _as_array(boxes, "boxes")
    height, width = _check_size(*image_size)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ValueError(f"mask_probs must have the shape [N, M, M] with M >= 1, not {list(masks.shape)}")
    if masks.dtype != np.float32:
        raise ValueError(f"mask_probs must be float32, not {masks.dtype}")
    if corners.shape != (len(masks), 4):
        raise ValueError(
            f"boxes must have the shape [N, 4] with mask_probs' N = {len(masks)}, not {list(corners.shape)}"
        )
    if corners.dtype not in (np.float32, np.float64):
        raise ValueError(f"boxes must be float32 or float64, not {corners.dtype}")
    if not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, not {threshold}")
    if len(masks) == 0:
        return [], np.zeros(0, np.int64)

    from pipeline.masks import rle_kernel  # late: importing numba takes half a second, and readers do not need it

    text, ends, areas, bad = rle_kernel.encode_boxes(
        np.require(masks, requirements=["C", "W", "A"]),
        _expand_boxes(corners, masks.shape[1]),
        height,
        width,
        np.float32(threshold),
        rle_kernel.torch_resize_is_fused(),
    )
    if bad >= 0:
        raise ValueError(f"mask_probs must be finite, but mask {bad} of {len(masks)} is not")
    return _split(text, ends), areas


def runs_to_counts(lengths: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """`counts` and areas of masks given as run lengths, as `model.inference.mask_rle` gives them.

    Args:
        lengths: int64 [R], the run lengths of all masks, one mask after the other: column-major, outside first.
        numbers: int64 [N], how many run lengths each mask has.

    Returns:
        N strings of `counts`, and int64 [N] areas in pixels.
    """
    if len(lengths) <= _FEW_RUNS:
        return _few_runs_to_counts(lengths, numbers)
    from pipeline.masks import rle_kernel

    text, ends, areas = rle_kernel.write_masks(np.ascontiguousarray(lengths), np.ascontiguousarray(numbers))
    return _split(text, ends), areas


def _few_runs_to_counts(lengths: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """As `runs_to_counts`, by pycocotools: slower, and without the second that loading the kernel takes."""
    from pycocotools import mask as coco

    if len(numbers) == 0:
        return [], np.zeros(0, np.int64)
    masks = np.split(lengths, np.cumsum(numbers)[:-1])
    # The size is only carried along; the string does not depend on it.
    texts = coco.frPyObjects([{"size": [1, 1], "counts": runs.tolist()} for runs in masks], 1, 1)
    areas = np.array([runs[1::2].sum() for runs in masks], np.int64)
    return [text["counts"].decode("ascii") for text in texts], areas


def _split(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[str]:
    joined = text.tobytes().decode("ascii")
    return [joined[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


def encode_mask(mask: NDArray[Any]) -> str:
    """`counts` of one full-size mask.

    Args:
        mask: uint8 or bool [H, W], any memory order; non-zero is inside.

    Raises:
        ValueError: a wrong shape or dtype, no pixels, or 2**32 pixels or more.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        raise ValueError(f"mask must be an array of shape [H, W], not {_shape_or_type(mask)}")
    if mask.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"mask must be uint8 or bool, not {mask.dtype}")
    _check_size(*mask.shape)
    from pycocotools import mask as coco

    return coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))["counts"].decode("ascii")


def decode_rle(counts: str | bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The mask of `counts`: uint8 [height, width], 1 inside and 0 outside, in Fortran order.

    Raises:
        ValueError: `counts` is malformed or does not describe height x width pixels.
    """
    height, width = _check_size(height, width)
    runs = counts_to_runs(counts)
    if int(runs.sum()) != height * width:
        raise ValueError(
            f"counts must describe {height} x {width} = {height * width} pixels, but describe {runs.sum()}"
        )
    values = np.zeros(len(runs), np.uint8)
    values[1::2] = 1
    return np.repeat(values, runs).reshape(width, height).T


def counts_to_runs(counts: str | bytes) -> NDArray[np.int64]:
    """The run lengths of `counts` in pixels: int64 [R], all >= 0; outside runs have even indices.

    Raises:
        ValueError: `counts` is malformed.
    """
    characters = np.frombuffer(_check_counts([counts])[0], np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(characters < 32)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise ValueError(f"counts must hold numbers of at most {_LONGEST_NUMBER} characters, not {lengths.max()}")
    shifts = 5 * (np.arange(len(characters)) - np.repeat(first, lengths))
    runs = np.add.reduceat((characters & 31) << shifts, first)
    runs -= np.where(characters[last] & 16, np.int64(1) << 5 * lengths, 0)  # two's complement
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError(f"counts must hold no negative run length, but run {int(runs.argmin())} is {runs.min()}")
    return runs


def runs_to_rle(runs: Sequence[int], height: int, width: int) -> str:
    """`counts` of COCO's uncompressed form, a list of run lengths in column-major order, outside first.

    Raises:
        ValueError: a run length is negative or no integer, or they do not sum to height x width.
    """
    height, width = _check_size(height, width)
    lengths = np.asarray(runs)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("runs must be a list of whole numbers >= 0")
    if int(lengths.sum()) != height * width:
        raise ValueError(f"runs must sum to {height} x {width} = {height * width}, not {lengths.sum()}")
    from pycocotools import mask as coco

    packed = coco.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
    return packed["counts"].decode("ascii")


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> str:
    """`counts` of the union of COCO polygons, filled by pycocotools (roughly: pixels whose centre is inside).

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels of the image, three corners or more. Parts outside the image are
            cut off. No polygon gives an empty mask.
        height, width: size of the image.

    Raises:
        ValueError: an odd or too small number of coordinates, or a coordinate that is not finite or beyond 10**6.
    """
    height, width = _check_size(height, width)
    corners = []
    for index, polygon in enumerate(polygons):
        flat = np.asarray(polygon, np.float64)
        if flat.ndim != 1 or flat.size < 6 or flat.size % 2:
            raise ValueError(
                f"polygon {index} must be a flat list x1, y1, x2, y2, ... of three corners or more, "
                f"not of shape {list(flat.shape)}"
            )
        if not (np.abs(flat) <= FARTHEST_POLYGON_PX).all():
            raise ValueError(f"polygon {index} must have finite coordinates of at most {FARTHEST_POLYGON_PX:g} px")
        corners.append(flat.tolist())
    if not corners:
        return runs_to_rle([height * width], height, width)
    from pycocotools import mask as coco

    return coco.merge(coco.frPyObjects(corners, height, width))["counts"].decode("ascii")


def rle_areas(counts: Sequence[str | bytes]) -> NDArray[np.int64]:
    """The number of inside pixels of each mask: int64 [N].

    Raises:
        ValueError: a string is malformed.
    """
    from pycocotools import mask as coco

    # The area does not depend on the size. With numpy 2, pycocotools 2.0 refuses more than 255 masks at a time.
    masks = _as_dicts(counts, 1, 1)
    areas = [coco.area(masks[start : start + 255]) for start in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0, np.int64), *areas], dtype=np.int64, casting="unsafe")


def rle_bbox(counts: Sequence[str | bytes], height: int, width: int) -> NDArray[np.float32]:
    """The tight bbox of each mask: float32 [N, 4], COCO's XYWH in whole pixels; zeros for an empty mask.

    Raises:
        ValueError: a string is malformed or the size is not positive.
    """
    from pycocotools import mask as coco

    dicts = _as_dicts(counts, *_check_size(height, width))
    return np.asarray(coco.toBbox(dicts), np.float32).reshape(len(counts), 4)


def rle_iou(
    detections: Sequence[str | bytes],
    truths: Sequence[str | bytes],
    height: int,
    width: int,
    iscrowd: Sequence[bool] | None = None,
) -> NDArray[np.float64]:
    """Intersection over union of every detection with every truth: float64 [D, G], both of one image.

    Args:
        detections, truths: `counts` of D and G masks; either may be empty.
        height, width: size of the image.
        iscrowd: whether each truth is a crowd, of length G. For a crowd the intersection is divided by the detection's
            area alone, as in COCO's evaluation. None means that no truth is a crowd.

    Raises:
        ValueError: a string is malformed, the size is not positive, or `iscrowd` is not of length G.
    """
    size = _check_size(height, width)
    crowd = [0] * len(truths) if iscrowd is None else [int(bool(flag)) for flag in iscrowd]
    if len(crowd) != len(truths):
        raise ValueError(f"iscrowd must have one entry for each of the {len(truths)} truths, not {len(crowd)}")
    if not len(detections) or not len(truths):
        return np.zeros((len(detections), len(truths)))
    from pycocotools import mask as coco

    return np.asarray(coco.iou(_as_dicts(detections, *size), _as_dicts(truths, *size), crowd), np.float64)


def rle_merge(counts: Sequence[str | bytes], height: int, width: int, *, intersect: bool = False) -> str:
    """`counts` of the union, or the intersection, of masks of one image.

    Args:
        counts: at least one mask.
        height, width: size of the image.
        intersect: gives the intersection instead of the union.

    Raises:
        ValueError: no mask, a malformed string, or the size is not positive.
    """
    masks = _as_dicts(counts, *_check_size(height, width))
    if not masks:
        raise ValueError("counts must hold at least one mask")
    from pycocotools import mask as coco

    return coco.merge(masks, intersect)["counts"].decode("ascii")


def _expand_boxes(boxes: NDArray[Any], side: int) -> NDArray[np.int64]:
    """torchvision's `expand_boxes` for a padding of 1, cut to whole pixels: int64 [N, 4], edges inclusive."""
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(f"boxes must be finite, but box {bad} is {boxes[bad].tolist()}")
    half = boxes.dtype.type(0.5)
    scale = boxes.dtype.type((side + 2) / side)
    # A sum of huge corners may overflow; the check below then finds it.
    with np.errstate(over="ignore", invalid="ignore"):
        half_size = (boxes[:, 2:] - boxes[:, :2]) * half * scale
        centre = (boxes[:, 2:] + boxes[:, :2]) * half
        expanded = np.concatenate([centre - half_size, centre + half_size], axis=1)
    if not (np.abs(expanded) <= _FARTHEST_BOX_PX).all():
        bad = int(np.flatnonzero(~(np.abs(expanded) <= _FARTHEST_BOX_PX).all(axis=1))[0])
        raise ValueError(f"boxes must lie within 2**30 px, but box {bad} is {boxes[bad].tolist()}")
    return expanded.astype(np.int64, order="C")


def _as_array(value: Any, name: str) -> NDArray[Any]:
    """An array or a CPU torch tensor as a numpy array, without a copy; torch itself is not imported."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        raise ValueError(f"{name} must be a numpy array or a CPU torch tensor, not a {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {value.device}")
    try:
        return value.detach().numpy()
    except TypeError as error:  # a dtype that numpy does not know
        raise ValueError(f"{name} must be float32, not {value.dtype}") from error


def _check_size(height: int, width: int) -> tuple[int, int]:
    if int(height) != height or int(width) != width or height < 1 or width < 1:
        raise ValueError(f"the image's height and width must be whole numbers >= 1, not {height} and {width}")
    if int(height) * int(width) > _MOST_PIXELS:
        raise ValueError(f"the image must have fewer than 2**32 pixels, not {height} x {width}")
    return int(height), int(width)


def _check_counts(counts: Sequence[str | bytes]) -> list[bytes]:
    """The strings as bytes, checked, because pycocotools would read beyond the end of a malformed one."""
    if isinstance(counts, (str, bytes)):
        raise ValueError("counts must be a sequence of strings, one for each mask, not one string")
    checked = []
    for index, text in enumerate(counts):
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        if not isinstance(text, str) or not _WELL_FORMED.fullmatch(text):
            raise ValueError(f"counts must be compressed COCO strings, but number {index} is {str(text)[:40]!r}")
        checked.append(text.encode("ascii"))
    return checked


def _as_dicts(counts: Sequence[str | bytes], height: int, width: int) -> list[dict[str, object]]:
    return [{"size": [height, width], "counts": text} for text in _check_counts(counts)]


def _shape_or_type(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
