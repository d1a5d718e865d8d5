"""Synthetic shapes: drawn photos of circles, squares and triangles with exact masks, for tests, demo and sweeps.

Shapes cover one another, and a shape's mask is its visible part. The colour does not depend on the class, the
background has muted texture at two scales, and shapes are tilted, striped or shaded. Category ids have gaps
(10, 20, 30), so that a label mistaken for an id shows at once.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.categories import Category
from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, Instance, mask_to_instance
from pipeline.storage.files import Location

SHAPE_CATEGORIES = (Category(10, "circle"), Category(20, "square"), Category(30, "triangle"))
_MIN_VISIBLE = 0.7  # share of a shape that stays visible; later shapes may cover the rest
_MAX_TILT = 0.35  # radians, to either side
_MIN_VISIBLE_PX = 80


@dataclass(frozen=True)
class DrawnImage:
    """A drawn photo.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        labels: 1..3, of SHAPE_CATEGORIES.
        masks: bool [H, W] each: the visible pixels of a shape. They do not overlap.
    """

    pixels: np.ndarray
    labels: tuple[int, ...]
    masks: tuple[np.ndarray, ...]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The shapes as annotations with exact RLE masks."""
        return tuple(mask_to_instance(label, mask) for label, mask in zip(self.labels, self.masks, strict=True))


def draw_shapes(
    folder: str | Location,
    *,
    num_train: int = 400,
    num_val: int = 60,
    num_unlabelled: int = 200,
    image_size: tuple[int, int] = (128, 160),
    max_shapes: int = 4,
    seed: int = 0,
    image_format: str = "png",
) -> None:
    """Draws the photos of `train/`, `val/` and `unlabelled/`, and writes `train.json` and `val.json` (COCO with RLE).

    The ground truth of the unlabelled photos is in `unlabelled_truth.json`, for evaluation only. Sides vary by an
    eighth around `image_size`. Pixels and annotations are a pure function of the arguments.

    PNG is the default: its pixels are the same whichever library version wrote and reads them, so results of two
    machines compare exactly. "jpeg" (quality 92) looks more like photos.

    Raises:
        ValueError: a size below 32 px, a negative number, or another image format.
    """
    if min(image_size) < 32:
        raise ValueError(f"image_size must be at least 32 px on each side, not {image_size}")
    if image_format not in ("png", "jpeg"):
        raise ValueError(f"image_format must be png or jpeg, not {image_format!r}")
    splits = [
        ("train", "train.json", num_train),
        ("val", "val.json", num_val),
        ("unlabelled", "unlabelled_truth.json", num_unlabelled),
    ]
    for split, (name, json_name, count) in enumerate(splits):
        if count < 0:
            raise ValueError(f"the number of {name} images must not be negative, not {count}")
        images = []
        for number in range(count):
            rng = np.random.default_rng([seed, split, number])
            drawn = draw_image(rng, _vary(rng, image_size), max_shapes=max_shapes)
            file_name = f"{name}_{number:05d}.{'jpg' if image_format == 'jpeg' else 'png'}"
            path = Location.of(folder) / name / file_name
            path.write_bytes(_encoded(drawn.pixels, image_format))
            height, width = drawn.pixels.shape[:2]
            images.append(AnnotatedImage(number + 1, file_name, path, height, width, drawn.instances))
        ground_truth = to_coco(AnnotatedSet(tuple(images), SHAPE_CATEGORIES))
        (Location.of(folder) / json_name).write_json(ground_truth)


def draw_image(rng: np.random.Generator, image_size: tuple[int, int], *, max_shapes: int = 4) -> DrawnImage:
    """One photo of 1 to `max_shapes` shapes, drawn one over another; `image_size` is (height, width)."""
    height, width = image_size
    canvas = _background(rng, height, width)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    full_px: list[int] = []
    wanted = int(rng.integers(1, max_shapes + 1))
    for _ in range(4 * wanted):
        if len(labels) == wanted:
            break
        label = int(rng.integers(1, 4))
        inside = _shape_mask(rng, label, height, width)
        size = int(inside.sum())
        rest = [mask & ~inside for mask in masks]
        if size < _MIN_VISIBLE_PX or any(
            r.sum() < max(_MIN_VISIBLE * px, _MIN_VISIBLE_PX) for r, px in zip(rest, full_px, strict=True)
        ):
            continue
        _paint(rng, canvas, inside)
        masks = [*rest, inside]
        labels.append(label)
        full_px.append(size)
    canvas += rng.normal(0.0, rng.uniform(1.0, 5.0), canvas.shape)
    return DrawnImage(np.clip(canvas, 0, 255).astype(np.uint8), tuple(labels), tuple(masks))


def _vary(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = (int(side + rng.integers(-(side // 8), side // 8 + 1)) for side in image_size)
    return height, width


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Slightly coloured noise at two scales around a random grey: float64 [H, W, 3]."""
    canvas = np.full((height, width, 3), rng.uniform(60, 195)) + rng.uniform(-15, 15, 3)
    for cells, strength in ((4, 18.0), (20, 8.0)):
        coarse = rng.normal(0.0, strength, (cells, cells, 1)) + rng.normal(0.0, strength / 3, (cells, cells, 3))
        y, x = np.linspace(0, cells - 1.001, height), np.linspace(0, cells - 1.001, width)
        y0, x0 = y.astype(int), x.astype(int)
        fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
        top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
        bottom = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
        canvas += top * (1 - fy) + bottom * fy
    return canvas


def _shape_mask(rng: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """bool [H, W]: pixels whose centre lies in a shape of random position, size and tilt; it may cross the border."""
    radius = min(height, width) * rng.uniform(0.14, 0.30)
    margin = 0.7 * radius  # a sliver at the border could be any of the three
    cy, cx = rng.uniform(margin, height - margin), rng.uniform(margin, width - margin)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    dy, dx = y - cy, x - cx
    if label == 1:
        return dx * dx + dy * dy <= radius * radius
    angle = rng.uniform(-_MAX_TILT, _MAX_TILT)
    if label == 2:
        u = dx * math.cos(angle) + dy * math.sin(angle)
        v = dy * math.cos(angle) - dx * math.sin(angle)
        return np.maximum(np.abs(u), np.abs(v)) <= radius * 0.85
    inside = np.ones((height, width), dtype=bool)
    for side in range(3):  # three half-planes at 0.55 radius: an inscribed circle of that, a circumcircle of 1.1
        normal = angle + math.pi / 2 + side * 2 * math.pi / 3  # the first points down: the triangle stands on it
        inside &= dx * math.cos(normal) + dy * math.sin(normal) <= radius * 0.55
    return inside


def _paint(rng: np.random.Generator, canvas: np.ndarray, inside: np.ndarray) -> None:
    """Fills the mask with a colour unlike the mean of the pixels below: flat, shaded or striped."""
    below = canvas[inside].mean(axis=0)
    colour = rng.uniform(0, 255, 3)
    for _ in range(10):
        if np.abs(colour - below).sum() >= 150:
            break
        colour = rng.uniform(0, 255, 3)
    y, x = np.nonzero(inside)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    style = rng.choice(["flat", "shaded", "striped"], p=[0.5, 0.35, 0.15])
    if style == "flat":
        shade = np.zeros(len(along))
    elif style == "shaded":
        shade = (along - along.mean()) * rng.uniform(0.3, 1.2)
    else:
        shade = np.where((along / rng.uniform(3, 7)).astype(int) % 2 == 0, 22.0, -22.0)
    canvas[inside] = colour + shade[:, None]


def _encoded(pixels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    if image_format == "png":
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
