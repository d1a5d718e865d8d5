"""Photos of a data set: their size, their EXIF turn, their pixels.

A photo with an EXIF orientation is turned, as in segmentation. Where the annotated size fits only the
unturned photo, the annotations were made on that, and it is used as it is; the loader counts such photos.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline import files
from pipeline.dataset.annotations import AnnotatedImage
from pipeline.pixels import SIDEWAYS, TURNS, TURNS_BACK, find_damage, orientation_of, to_rgb
from pipeline.tiff import UnsupportedTiff, is_tiff, read_tiff

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
        with Image.open(io.BytesIO(files.read_bytes(uri))) as photo:
            return _header_of(photo)
    except FileNotFoundError:
        raise UnusablePhoto("there is no such file") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(f"unreadable: {_one_line(error)}") from None


def load_photo(image: AnnotatedImage, *, in_channels: int = 3) -> tuple[np.ndarray, int]:
    """Pixels of an annotated photo in the orientation that its annotations refer to.

    Args:
        image: its photo and, if there are any, its extra files are read; the bands of these follow the
            photo's.
        in_channels: bands wanted. A photo of which three are wanted is converted to RGB, one of which one is
            wanted to grey; otherwise its own bands must be as many as wanted (RGBA, a TIFF of many bands).

    Returns:
        [height, width, in_channels], and EXIF_NONE, EXIF_TURNED, or EXIF_KEPT (the annotations fit the
        unturned photo only). uint8 for in_channels = 3 without extra files; otherwise float32, whole numbers
        divided by the largest of their type (255, 65535), floating-point numbers as they are.

    Raises:
        UnusablePhoto: absent, broken, of another size than annotated, turned or not, or of other bands than
            wanted.
    """
    extras = [_load_bands(path, image, None)[0] for path in image.extra_paths]
    wanted = in_channels - sum(extra.shape[2] for extra in extras)
    if wanted < 1:
        raise UnusablePhoto(f"its extra files alone have {in_channels - wanted} bands; {in_channels} are wanted in all")
    pixels, turn = _load_bands(image.path, image, wanted)
    if in_channels == 3 and not extras:
        return pixels, turn
    return np.concatenate([_to_unit(part) for part in (pixels, *extras)], axis=2), turn


def _load_bands(uri: str, image: AnnotatedImage, wanted: int | None) -> tuple[np.ndarray, int]:
    """[height, width, wanted] of one file in the annotated orientation, and the turn; None takes the bands
    there are.
    """
    try:
        data = files.read_bytes(uri)
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else f"unreadable: {_one_line(error)}"
        raise UnusablePhoto(what if uri == image.path else f"{uri}: {what}") from None
    unsupported = ""
    try:
        if wanted != 3 and is_tiff(data):
            try:
                pixels = read_tiff(data)
                turn = choose_turn(PhotoHeader(*pixels.shape[:2]), image.height, image.width)
                return _checked_bands(pixels, wanted), turn
            except UnsupportedTiff as error:
                unsupported = f" ({error})"  # Pillow knows more compressions, of up to four bands
        with Image.open(io.BytesIO(data)) as photo:
            if sorted(photo.size) != sorted((image.height, image.width)):  # before decoding: a bomb ends here
                choose_turn(PhotoHeader(photo.height, photo.width), image.height, image.width)
            header = _header_of(photo)
            turn = choose_turn(header, image.height, image.width)
            if damage := find_damage(data, photo.format):
                raise UnusablePhoto(damage)
            photo.load()
            if wanted == 3:
                return np.array(_turned(to_rgb(photo), photo.format, header.exif_orientation, turn)), turn
            upright = _turned(photo, photo.format, header.exif_orientation, turn)
            return _checked_bands(_own_bands(upright, wanted), wanted), turn
    except UnusablePhoto as error:
        raise type(error)(f"{error}{unsupported}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(f"unreadable: {_one_line(error)}{unsupported}") from None


def _own_bands(photo: Image.Image, wanted: int | None) -> np.ndarray:
    """[H, W, C] of the bands that the photo has; as grey where one is wanted of a coloured one."""
    if wanted == 1 and photo.mode not in ("L", "1", "F") and not photo.mode.startswith("I"):
        photo = photo.convert("L")
    elif photo.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        photo = photo.convert("RGB")
    pixels = np.atleast_3d(np.array(photo))
    # 16-bit grey is held as 32-bit numbers by some of Pillow's plugins.
    return np.clip(pixels, 0, 65535).astype(np.uint16) if photo.mode == "I" else pixels


def _checked_bands(pixels: np.ndarray, wanted: int | None) -> np.ndarray:
    if wanted is not None and pixels.shape[2] != wanted:
        raise UnusablePhoto(f"it has {pixels.shape[2]} bands; {wanted} are wanted")
    return pixels


def _to_unit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


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
    height, width = photo.height, photo.width
    if photo.format == "TIFF" and orientation in SIDEWAYS:  # Pillow turns TIFFs by itself
        height, width = width, height
    return PhotoHeader(height, width, orientation)


def _turned(picture: Image.Image, name: str | None, orientation: int, turn: int) -> Image.Image:
    """The decoded picture as its annotations want it; a TIFF (its format is `name`) comes from Pillow upright."""
    if name == "TIFF":
        return picture.transpose(TURNS_BACK[orientation]) if turn == EXIF_KEPT else picture
    return picture.transpose(TURNS[orientation]) if turn == EXIF_TURNED else picture


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
