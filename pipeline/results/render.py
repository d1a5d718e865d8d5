"""Overlays: a run's masks, boxes, classes and scores drawn on its photos; contact sheets of several photos."""

from __future__ import annotations

import colorsys
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.images.pixels import TURNS, orientation_of, to_rgb
from pipeline.manifest import Run, open_run
from pipeline.schema import OK
from pipeline.storage.files import Location
from pipeline.tables import decode_masks, load_images, load_instances

_MASK_OPACITY = 0.45
_MAX_PIXELS = 200_000_000  # of a photo opened for drawing


def color_of(category: str) -> tuple[int, int, int]:
    """RGB 0..255 of a class, computed from its name alone, so that it is the same in every picture."""
    digest = zlib.crc32(category.encode())
    hue = digest % 1024 / 1024
    lightness = (0.50, 0.58, 0.66)[digest // 1024 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def palette(categories: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Colours (RGB 0..255) by class name, as different from one another as their number allows.

    In the order of the names each hue is a golden angle further. The same set of names gives the same colours.
    """
    colors = {}
    for number, name in enumerate(sorted(set(categories))):
        hue = (0.58 + number * 0.61803398875) % 1
        red, green, blue = colorsys.hls_to_rgb(hue, (0.55, 0.66, 0.45)[number // 8 % 3], 0.92)
        colors[name] = (round(red * 255), round(green * 255), round(blue * 255))
    return colors


def overlay(
    photo: str | os.PathLike[str] | np.ndarray | Image.Image,
    instances: pd.DataFrame,
    *,
    colors: Mapping[str, tuple[int, int, int]] | None = None,
    min_score: float = 0.0,
    masks: bool = True,
    boxes: bool = True,
    labels: bool = True,
) -> Image.Image:
    """A photo with its instances drawn on it, best score on top.

    Args:
        photo: uint8 [H, W, 3] RGB, or a PIL image, of the size that the run segmented (turned by its EXIF orientation);
            or its path or URI, which is opened as `open_photo` does.
        instances: this photo's rows of the instances table (`category`, `score`, `x1` .. `y2`, `rle_counts`,
            `image_height`, `image_width`); without rows nothing is drawn. Where they are of several photos, those whose
            `image_id` is the path or URI as given are drawn.
        colors: by class, e.g. `palette` of all classes of a run; a class that is not in it gets `color_of`.
        min_score: rows below it are left out.
        masks, boxes, labels: whether to draw them.

    Returns:
        An RGB image of the photo's size.

    Raises:
        ValueError: the masks are of another size than the photo.
    """
    if isinstance(photo, str | os.PathLike):
        name = os.fspath(photo)
        photo = open_photo(name)
        if "image_id" in instances and instances["image_id"].nunique() > 1:
            instances = instances[instances["image_id"] == name]
    image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo
    image = image.convert("RGB")
    rows = instances[instances["score"] >= min_score].sort_values("score", kind="stable")
    if not len(rows):
        return image.copy()
    height, width = (int(rows[name].iloc[0]) for name in ("image_height", "image_width"))
    if (height, width) != (image.height, image.width):
        raise ValueError(
            f"the photo is {image.height} x {image.width}, but its instances were found on {height} x {width} pixels"
        )
    class_colors = colors or {}
    row_colors = [class_colors.get(category) or color_of(category) for category in rows["category"]]
    pixels = np.array(image)
    if masks:
        for mask, color in zip(decode_masks(rows), row_colors, strict=True):
            _blend(pixels, mask.astype(bool), color)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    line_px = max(1, round(min(image.size) / 250))
    if boxes:
        for row, color in zip(rows.itertuples(), row_colors, strict=True):
            corners = (row.x1, row.y1, max(row.x2 - 1, row.x1), max(row.y2 - 1, row.y1))  # PIL's edges are inclusive
            draw.rectangle(corners, outline=color, width=line_px)
    if labels:
        font = _font(max(11, round(min(image.size) / 32)))
        for row, color in zip(rows.itertuples(), row_colors, strict=True):
            _label(draw, f"{row.category} {row.score:.2f}", (row.x1, row.y1), color, font, image.size)
    return image


def contact_sheet(
    pictures: Sequence[Image.Image],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    tile_px: int = 320,
) -> Image.Image:
    """Several pictures on one sheet, each scaled to fit a square tile, with a title below it.

    Args:
        titles: of the pictures; None: no titles.
        columns: tiles in a row, at most.
        tile_px: side of a tile.

    Returns:
        An RGB image.

    Raises:
        ValueError: no picture, or another number of titles than of pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    titles = [""] * len(pictures) if titles is None else list(titles)
    if len(titles) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures have {len(titles)} titles; as many are needed")
    columns = min(columns, len(pictures))
    font = _font(max(11, tile_px // 22))
    gap = max(4, tile_px // 40)
    title_px = font.size + gap if any(titles) else 0
    num_rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (gap + columns * (tile_px + gap), gap + num_rows * (tile_px + title_px + gap)), (24, 26, 30)
    )
    draw = ImageDraw.Draw(sheet)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + number % columns * (tile_px + gap)
        top = gap + number // columns * (tile_px + title_px + gap)
        tile = ImageOps.contain(picture.convert("RGB"), (tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (tile_px - tile.width) // 2, top + (tile_px - tile.height) // 2))
        draw.text((left, top + tile_px + gap // 2), _shorten(title, font, tile_px), (225, 228, 232), font)
    return sheet


def open_photo(photo: str | Location) -> Image.Image:
    """A photo as the run segmented it: its first frame, turned by its EXIF orientation, as RGB.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be decoded, or has more than 200 million pixels.
    """
    data = Location.of(photo).read_bytes()
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > _MAX_PIXELS:
        raise OSError(f"{photo} has {image.width} x {image.height} pixels, too many to draw on")
    picture = to_rgb(image, data)
    turn = None if image.format == "TIFF" else TURNS.get(orientation_of(image) or 1)  # Pillow turns TIFFs itself
    return picture if turn is None else picture.transpose(turn)


def save_overlays(
    run: str | Run, folder: str | Path, *, num_images: int = 12, min_score: float = 0.5, seed: int = 0
) -> list[Path]:
    """Draws a sample of a run's photos into a folder, and `contact_sheet.png` of all of them.

    Photos with instances are preferred. The choice depends on the run and `seed` alone. A photo that is gone or cannot
    be opened any more is left out.

    Args:
        num_images: size of the sample, at most.
        min_score: instances below it are not drawn.

    Returns:
        The files written, the contact sheet first; empty when there is no photo to draw.
    """
    run = open_run(run) if isinstance(run, str) else run
    images = load_images(run, ["image_id", "uri", "status"], [("status", "==", OK)])
    confident = load_instances(run, ["image_id"], [("score", ">=", min_score)])["image_id"].unique()
    images = images.sample(frac=1, random_state=seed)
    has_instances = images["image_id"].isin(set(confident))
    chosen = pd.concat([images[has_instances], images[~has_instances]]).head(num_images)
    rows = load_instances(run, filters=[("image_id", "in", chosen["image_id"].tolist()), ("score", ">=", min_score)])
    by_image = dict(tuple(rows.groupby("image_id")))
    colors = palette(load_instances(run, ["category"])["category"].unique())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []
    titles: list[str] = []
    written: list[Path] = []
    for row in chosen.sort_values("image_id").itertuples():
        try:
            picture = overlay(
                open_photo(Location(row.uri, run.storage.settings)),
                by_image.get(row.image_id, rows.iloc[:0]),
                colors=colors,
            )
        except (OSError, ValueError):
            continue
        path = folder / f"{len(pictures):03d}_{_file_stem(row.image_id)}.png"
        picture.save(path)
        pictures.append(picture)
        titles.append(row.image_id)
        written.append(path)
    if not pictures:
        return []
    sheet = folder / "contact_sheet.png"
    contact_sheet(pictures, titles=titles).save(sheet)
    return [sheet, *written]


def _blend(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Tints the mask's pixels and draws its outline opaque, in place."""
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    pixels[mask] = (pixels[mask] * (1 - _MASK_OPACITY) + np.array(color) * _MASK_OPACITY).astype(np.uint8)
    pixels[mask & ~inside] = color


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    color: tuple[int, int, int],
    font: Any,
    size: tuple[int, int],
) -> None:
    """Text on a patch of the class's colour: above the box's corner where there is room, and inside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(0, corner[0]), max(0, size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], max(0, size[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    red, green, blue = color
    dark_text = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    draw.text((x + 3 - left, y + 2 - top), text, (0, 0, 0) if dark_text else (255, 255, 255), font)


@lru_cache(maxsize=16)
def _font(size_px: int) -> Any:
    return ImageFont.load_default(size_px)


def _shorten(text: str, font: Any, width_px: int) -> str:
    """The text, cut at its beginning where it is wider than `width_px`."""
    if not text or font.getlength(text) <= width_px:
        return text
    while text and font.getlength("…" + text) > width_px:
        text = text[1:]  # the end of a key tells more than its beginning
    return "…" + text


def _file_stem(image_id: str) -> str:
    stem = image_id.rpartition("/")[2].rpartition(".")[0] or image_id.rpartition("/")[2]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:80]
