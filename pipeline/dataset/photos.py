"""Photos of a data set: reads size and pixels, and applies the EXIF orientation where the annotations need it.

A photo with an EXIF orientation is turned, as in segmentation. Where the annotated size fits only the photo as stored,
the annotations were made on that, and it is used unturned; the loader counts such photos.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.dataset.types import AnnotatedImage
from pipeline.images.damage import check_readable, load_whole
from pipeline.images.pixels import (
    SIDEWAYS,
    TURNED_BACK_BY,
    orientation_of,
    to_bands,
    to_rgb,
    to_unit,
    turn,
)
from pipeline.images.raster import (
    UnsupportedTiff,
    is_tiff,
    pillow_shows,
    read_tiff_bands,
    read_tiff_header,
    read_tiff_rgb,
)
from pipeline.storage.files import Location

EXIF_NONE, EXIF_TURNED, EXIF_KEPT = 0, 1, 2
"""A photo's EXIF orientation: none, applied, or not applied because the annotations fit the photo as stored."""


class UnusablePhoto(ValueError):
    """A photo that cannot be a sample: unreadable, or of another size than annotated. The message says why."""


class WrongSize(UnusablePhoto):
    """A photo of another size than annotated, turned or not."""


@dataclass(frozen=True)
class PhotoHeader:
    """A photo's size in pixels as stored, before its EXIF orientation is applied, and that orientation (1..8)."""

    height: int
    width: int
    exif_orientation: int = 1

    @property
    def turned_size(self) -> tuple[int, int]:
        """(H, W) after the EXIF orientation is applied."""
        return (self.width, self.height) if self.exif_orientation >= 5 else (self.height, self.width)


def read_header(path: Location) -> PhotoHeader:
    """Size and orientation of a photo, without decoding its pixels (a PNG's are, which come before its EXIF data).

    Raises:
        UnusablePhoto: the file is absent or no image.
    """
    try:
        data = path.read_bytes()
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
        image: its photo is read, and its extra files, whose bands follow the photo's.
        in_channels: number of bands wanted, those of extra files included. Of the photo, three bands are its
            conversion to RGB and one is that to grey; any other number must be the number of its own bands (RGBA,
            a TIFF of many bands). None takes the bands that there are.

    Returns:
        Pixels [height, width, in_channels], and EXIF_NONE, EXIF_TURNED, or EXIF_KEPT (the annotations fit only the
        photo as stored). Pixels are uint8 for in_channels = 3 without extra files. Otherwise they are float32:
        integers divided by the largest of their type (255, 65535), floating-point numbers unchanged.

    Raises:
        UnusablePhoto: absent, broken, of another size than annotated (turned or not), or with another number of bands
            than wanted.
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


def _load(path: Location, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    """One file's pixels in the annotated orientation (uint8 RGB for three bands, else as `to_unit`) and EXIF_*."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with NUL, a URI of no store
        absent = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if absent else f"unreadable: {_one_line(error)}"
        raise UnusablePhoto(reason if path == image.path else f"{path}: {reason}") from None
    unsupported = ""
    try:
        if is_tiff(data) and (num_bands != 3 or not pillow_shows(data)):
            try:
                return _decode_tiff(data, image, num_bands)
            except UnsupportedTiff as error:
                if num_bands == 3 or not pillow_shows(data):
                    raise
                unsupported = f" ({error})"  # Pillow reads more compressions, of up to four bands
        return _decode(data, image, num_bands)
    except UnusablePhoto as error:
        raise type(error)(f"{error}{unsupported}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(f"unreadable: {_one_line(error)}{unsupported}") from None


def _decode_tiff(data: bytes, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    header = _tiff_header(data)
    turned = choose_turn(header, image.height, image.width)  # before decoding: refuses decompression bombs
    pixels = read_tiff_rgb(data) if num_bands == 3 else read_tiff_bands(data, num_bands)
    return _turned(pixels, header.exif_orientation if turned == EXIF_TURNED else 1), turned


def _decode(data: bytes, image: AnnotatedImage, num_bands: int | None) -> tuple[np.ndarray, int]:
    check_readable(data, "JPEG" if data[:2] == b"\xff\xd8" else None)
    with Image.open(io.BytesIO(data)) as photo:
        # Before anything is decoded: refuses decompression bombs. A PNG's pixels come before its EXIF data.
        if sorted(photo.size) != sorted((image.height, image.width)):
            choose_turn(PhotoHeader(photo.height, photo.width), image.height, image.width)
        header = _header_of(photo)
        turned = choose_turn(header, image.height, image.width)
        whole = load_whole(photo, data)
        pixels = np.array(to_rgb(whole, data)) if num_bands == 3 else to_bands(whole, num_bands)
        if photo.format == "TIFF":  # Pillow has applied the orientation already
            back = TURNED_BACK_BY.get(header.exif_orientation, header.exif_orientation)
            return _turned(pixels, back if turned == EXIF_KEPT else 1), turned
        return _turned(pixels, header.exif_orientation if turned == EXIF_TURNED else 1), turned


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(turn(pixels, orientation))


def choose_turn(header: PhotoHeader, height: int, width: int) -> int:
    """Whether a photo must be turned to have its annotated size: EXIF_NONE, EXIF_TURNED or EXIF_KEPT.

    Raises:
        WrongSize: it has another size, turned or not.
    """
    if (height, width) == header.turned_size:
        return EXIF_NONE if header.exif_orientation == 1 else EXIF_TURNED
    if (height, width) == (header.height, header.width):
        return EXIF_KEPT
    turned = header.turned_size
    raise WrongSize(f"the photo is {turned[0]} x {turned[1]} px (H x W), but annotated as {height} x {width}")


def _header_of(photo: Image.Image) -> PhotoHeader:
    orientation = orientation_of(photo) or 1
    if photo.format == "TIFF" and orientation in SIDEWAYS:  # Pillow gives the size after the turn
        return PhotoHeader(photo.width, photo.height, orientation)
    return PhotoHeader(photo.height, photo.width, orientation)


def _tiff_header(data: bytes) -> PhotoHeader:
    header = read_tiff_header(data)
    return PhotoHeader(header.height, header.width, header.orientation or 1)


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message has the address of a buffer
        return "no image of a format that is known"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
