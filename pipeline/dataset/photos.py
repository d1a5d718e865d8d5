"""Photos of a data set: their size, their EXIF turn, their pixels.

A photo with an EXIF orientation is turned, as in segmentation. Where the annotated size fits only the
unturned photo, the annotations were made on that, and it is used as it is; the loader counts such photos.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.dataset.types import AnnotatedImage
from pipeline.images.pixels import (
    SIDEWAYS,
    TURNED_BACK_BY,
    find_damage,
    orientation_of,
    to_bands,
    to_rgb,
    to_unit,
    turn,
)
from pipeline.images.raster import UnsupportedTiff, is_tiff, read_tiff_bands, read_tiff_header
from pipeline.storage import files

EXIF_NONE, EXIF_TURNED, EXIF_KEPT = 0, 1, 2


class UnusablePhoto(ValueError):
    """A photo that cannot serve as a sample: unreadable, or of another size than annotated. The message says
    why.
    """


class WrongSize(UnusablePhoto):
    """A photo of another size than annotated, turned or not."""


@dataclass(frozen=True)
class PhotoHeader:
    """What a photo's header says: size as stored (before any turn) in pixels, EXIF orientation 1..8."""

    height: int
    width: int
    exif_orientation: int = 1

    @property
    def turned_size(self) -> tuple[int, int]:
        """(H, W) after the EXIF turn."""
        return (self.width, self.height) if self.exif_orientation >= 5 else (self.height, self.width)


def read_header(uri: str) -> PhotoHeader:
    """Size and orientation of a photo, without decoding its pixels (a PNG's are, which come before its EXIF data).

    Raises:
        UnusablePhoto: absent, or no image.
    """
    try:
        data = files.read_bytes(uri)
        if is_tiff(data):
            return _tiff_header(data)
        with Image.open(io.BytesIO(data)) as photo:
            return _header_of(photo)
    except FileNotFoundError:
        raise UnusablePhoto("there is no such file") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(f"unreadable: {_one_line(error)}") from None


def load_photo(image: AnnotatedImage, *, in_channels: int | None = 3) -> tuple[np.ndarray, int]:
    """Pixels of an annotated photo in the orientation that its annotations refer to.

    Args:
        image: its photo and, if there are any, its extra files are read; the bands of these follow the
            photo's.
        in_channels: bands wanted. A photo of which three are wanted is converted to RGB, one of which one is
            wanted to grey; otherwise its own bands must be as many as wanted (RGBA, a TIFF of many bands). None
            takes those there are.

    Returns:
        [height, width, in_channels], and EXIF_NONE, EXIF_TURNED, or EXIF_KEPT (the annotations fit the
        unturned photo only). uint8 for in_channels = 3 without extra files; otherwise float32, whole numbers
        divided by the largest of their type (255, 65535), floating-point numbers as they are.

    Raises:
        UnusablePhoto: absent, broken, of another size than annotated, turned or not, or of other bands than
            wanted.
    """
    extras = [_load(path, image, None)[0] for path in image.extra_paths]
    num_own = None if in_channels is None else in_channels - sum(extra.shape[2] for extra in extras)
    if num_own is not None and num_own < 1:
        raise UnusablePhoto(
            f"its extra files alone have {in_channels - num_own} bands; {in_channels} are wanted in all"
        )
    pixels, turned = _load(image.path, image, num_own)
    if not extras:
        return pixels, turned
    return np.concatenate([to_unit(pixels), *extras], axis=2), turned


def _load(uri: str, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    """One file in the annotated orientation, and the turn: uint8 RGB for three bands, else as `to_unit` gives them."""
    try:
        data = files.read_bytes(uri)
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else f"unreadable: {_one_line(error)}"
        raise UnusablePhoto(what if uri == image.path else f"{uri}: {what}") from None
    unsupported = ""
    try:
        if num_bands != 3 and is_tiff(data):
            try:
                return _decode_tiff(data, image, num_bands)
            except UnsupportedTiff as error:
                unsupported = f" ({error})"  # Pillow knows more compressions, of up to four bands
        return _decode(data, image, num_bands)
    except UnusablePhoto as error:
        raise type(error)(f"{error}{unsupported}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(f"unreadable: {_one_line(error)}{unsupported}") from None


def _decode_tiff(data: bytes, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    header = _tiff_header(data)
    turned = choose_turn(header, image.height, image.width)  # before decoding: a bomb ends here
    bands = read_tiff_bands(data, num_bands)
    return _turned(bands, header.exif_orientation if turned == EXIF_TURNED else 1), turned


def _decode(data: bytes, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    with Image.open(io.BytesIO(data)) as photo:
        if sorted(photo.size) != sorted((image.height, image.width)):  # a bomb ends here, PNG's before its EXIF data
            choose_turn(PhotoHeader(photo.height, photo.width), image.height, image.width)
        header = _header_of(photo)
        turned = choose_turn(header, image.height, image.width)
        if damage := find_damage(data, photo.format):
            raise UnusablePhoto(damage)
        photo.load()
        pixels = np.array(to_rgb(photo)) if num_bands == 3 else to_bands(photo, num_bands)
        if photo.format == "TIFF":  # comes from Pillow upright
            back = TURNED_BACK_BY.get(header.exif_orientation, header.exif_orientation)
            return _turned(pixels, back if turned == EXIF_KEPT else 1), turned
        return _turned(pixels, header.exif_orientation if turned == EXIF_TURNED else 1), turned


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(turn(pixels, orientation))


def choose_turn(header: PhotoHeader, height: int, width: int) -> int:
    """Whether a photo must be turned to agree with its annotated size: EXIF_NONE, EXIF_TURNED or EXIF_KEPT.

    Raises:
        WrongSize: it agrees neither turned nor unturned.
    """
    if (height, width) == header.turned_size:
        return EXIF_NONE if header.exif_orientation == 1 else EXIF_TURNED
    if (height, width) == (header.height, header.width):
        return EXIF_KEPT
    turned = header.turned_size
    raise WrongSize(f"the photo is {turned[0]} x {turned[1]} px (H x W), but annotated as {height} x {width}")


def _header_of(photo: Image.Image) -> PhotoHeader:
    orientation = orientation_of(photo) or 1
    if photo.format == "TIFF" and orientation in SIDEWAYS:  # Pillow states its turned size
        return PhotoHeader(photo.width, photo.height, orientation)
    return PhotoHeader(photo.height, photo.width, orientation)


def _tiff_header(data: bytes) -> PhotoHeader:
    header = read_tiff_header(data)
    return PhotoHeader(header.height, header.width, header.orientation or 1)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
