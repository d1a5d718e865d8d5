"""Draws photos of shaded discs and ellipses, as balloons look, with exact masks: a start for the balloon photos.

    python -m benchmarks.draw_balloons discs/train --num 900 --seed 1

writes `discs/train/*.jpg` and `discs/train/discs.json` (COCO with RLE, one category, balloon). No photo and no label is
needed for it. Backgrounds are noise at several scales under slabs and stripes of any colour; discs come alone or in
bunches, cover one another, shine, let some light through, and may have a knot and a string.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model.categories import Category
from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, mask_to_instance
from pipeline.storage.files import Location

CATEGORY = Category(1, "balloon")
SHORT_SIDE, LONG_SIDE = 256, 384  # px
MIN_VISIBLE_PX = 40
BUNCH_SIZES = (1, 1, 2, 3, 5, 8, 14)

Pixels = NDArray[np.float64]
"""float64 [H, W, 3], 0..1 and somewhat beyond."""


def draw_photo(random: np.random.Generator) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Pixels (uint8 [H, W, 3]) and the visible part of each disc (bool [H, W]), none below `MIN_VISIBLE_PX`."""
    is_wide = random.random() < 0.7
    height, width = (SHORT_SIDE, LONG_SIDE) if is_wide else (LONG_SIDE, SHORT_SIDE)
    pixels = _background(random, height, width)
    masks: list[NDArray[np.bool_]] = []
    count = int(random.choice(BUNCH_SIZES))
    centre = random.random(2) * [width, height]
    radius = math.exp(random.uniform(math.log(9), math.log(95)))
    spread = radius * random.uniform(1, 4)
    has_one_colour, colour = random.random() < 0.3, random.random(3)
    for number in range(count):
        own_radius, own_centre = radius, centre
        if random.random() < 0.6:  # one of the bunch
            own_radius = radius * random.uniform(0.75, 1.25)
            own_centre = centre + random.normal(size=2) * spread
        else:
            own_radius = math.exp(random.uniform(math.log(7), math.log(100)))
            own_centre = random.random(2) * [width, height]
        mask = _draw_disc(random, pixels, number, own_centre, own_radius, colour if has_one_colour else None)
        if mask is not None:
            masks = [*(other & ~mask for other in masks), mask]
    noisy = np.clip(pixels + random.normal(size=pixels.shape) * random.uniform(0, 0.04), 0, 1)
    image = Image.fromarray((noisy * 255).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.2))))
    return blurred, [mask for mask in masks if mask.sum() >= MIN_VISIBLE_PX]


def draw_balloons(folder: str, num_images: int, seed: int) -> None:
    """Writes photos (JPEG) and `discs.json` into a folder; the same seed writes the same ones."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(num_images):
        pixels, masks = draw_photo(random)
        name, encoded = f"{number:05d}.jpg", io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=int(random.integers(60, 95)))
        path = Location.of(folder) / name
        path.write_bytes(encoded.getvalue())
        instances = tuple(mask_to_instance(1, mask) for mask in masks)
        height, width = pixels.shape[:2]
        images.append(AnnotatedImage(number + 1, name, path, height, width, instances))
    (Location.of(folder) / "discs.json").write_json(to_coco(AnnotatedSet(tuple(images), (CATEGORY,))))


def _noise(random: np.random.Generator, height: int, width: int, cell: int) -> Pixels:
    """float64 [H, W, 3], 0..1: colours that change every `cell` pixels."""
    small = random.random((height // cell + 3, width // cell + 3, 3)).astype(np.float32)
    planes = (Image.fromarray((small[..., channel] * 255).astype(np.uint8)) for channel in range(3))
    resized = [plane.resize((width + cell, height + cell), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane)[:height, :width] for plane in resized], -1) / 255.0


def _background(random: np.random.Generator, height: int, width: int) -> Pixels:
    base = random.random(3)
    fine = random.random() * _noise(random, height, width, int(random.choice([8, 16, 40, 120])))
    pixels: Pixels = base * 0.5 + 0.5 * fine + 0.3 * (_noise(random, height, width, 200) - 0.5)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for _ in range(random.integers(3, 25)):
        centre, half_sides = random.random(2) * [width, height], random.uniform(5, 150, 2)
        along, across = _turned(x - centre[0], y - centre[1], random.random() * math.pi)
        inside = (abs(along) < half_sides[0]) & (abs(across) < half_sides[1])
        colour = random.random(3)
        if random.random() < 0.4:
            colour = colour + 0.3 * np.sign(np.sin(along[inside] / random.uniform(2, 20)))[:, None]
        pixels[inside] = 0.3 * pixels[inside] + 0.7 * colour
    slope = random.normal(size=2) / max(height, width)
    return pixels + (slope[0] * (x - width / 2) + slope[1] * (y - height / 2))[..., None] * 0.4


def _turned(x: Pixels, y: Pixels, angle: float) -> tuple[Pixels, Pixels]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _draw_disc(
    random: np.random.Generator,
    pixels: Pixels,
    number: int,
    centre: NDArray[np.float64],
    radius: float,
    colour: NDArray[np.float64] | None,
) -> NDArray[np.bool_] | None:
    """Draws a disc over the pixels; returns its mask, or None of one that is too small to be drawn."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    half_width, half_height, tilt = radius, radius * random.uniform(1.0, 1.3), random.normal() * 0.4
    across, down = _turned(x - centre[0], y - centre[1], tilt)
    down = np.where(down > 0, down / (1 + 0.12 * np.clip(down / half_height, 0, 1)), down)  # longer below
    distance = (across / half_width) ** 2 + (down / half_height) ** 2
    mask = distance < 1
    if random.random() < 0.6:
        below = (down > half_height * 0.97) & (down < half_height * 1.1)
        mask |= below & (abs(across) < (down - half_height * 0.9) * 0.5)  # the knot
    if mask.sum() < MIN_VISIBLE_PX:
        return None
    colour = random.random(3) if colour is None else colour
    vivid = (colour - colour.min()) / (np.ptp(colour) + 1e-3) * random.uniform(0.3, 1) + random.uniform(0, 0.3)
    light_x, light_y = random.uniform(-0.6, 0.6), random.uniform(-0.8, 0.1)
    towards_light = -(across * light_x + down * light_y) / radius
    shade = 1 - random.uniform(0.1, 0.6) * np.clip(distance, 0, 1.2) + random.uniform(0, 0.3) * towards_light
    from_shine = (across / half_width - light_x) ** 2 + (down / half_height - light_y) ** 2
    shine = np.exp(-from_shine / random.uniform(0.005, 0.06)) * random.uniform(0, 0.9)
    opacity = random.uniform(0.75, 1)
    skin = np.clip(vivid, 0, 1) * shade[..., None] + shine[..., None]
    if random.random() < 0.15:
        skin = skin + 0.25 * (_noise(random, height, width, 10) - 0.5)
    pixels[mask] = (1 - opacity) * pixels[mask] + opacity * skin[mask]
    if random.random() < 0.4:
        near = abs(x - centre[0] - 6 * np.sin(y / 40 + number)) < 0.7
        pixels[near & (down > half_height) & (y < centre[1] + radius * 5)] = random.random()  # the string
    return mask


def main(words: Sequence[str] | None = None) -> None:
    """Draws photos as the command line says."""
    parser = argparse.ArgumentParser(description="Draws photos of shaded discs with exact masks.")
    parser.add_argument("folder")
    parser.add_argument("--num", type=int, default=900, help="photos")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    draw_balloons(arguments.folder, arguments.num, arguments.seed)


if __name__ == "__main__":
    main()
