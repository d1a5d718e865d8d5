"""Photos of a data set: their size, their EXIF turn, their pixels.

A photo with an EXIF orientation is turned, as in segmentation. Where the annotated size fits only the
unturned photo, the annotations were made on that, and it is used as it is; the loader counts such photos.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from pipeline.dataset import files
from pipeline.dataset.annotations import AnnotatedImage

EXIF_NONE, EXIF_TURNED, EXIF_KEPT = 0, 1, 2
_ORIENTATION_TAG = 0x0112


class UnusablePhoto(ValueError):
    """A photo that cannot serve as a sample: unreadable, or of another size than annotated. The message says
    why.
    """


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
    """Size and orientation of a photo, without decoding its pixels.

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


def load_photo(image: AnnotatedImage) -> tuple[np.ndarray, int]:
    """Pixels of an annotated photo in the orientation that its annotations refer to.

    Returns:
        uint8 [height, width, 3] RGB, and EXIF_NONE, EXIF_TURNED, or EXIF_KEPT (the annotations fit the
        unturned photo only).

    Raises:
        UnusablePhoto: absent, broken, or of another size than annotated, turned or not.
    """
    try:
        with Image.open(io.BytesIO(files.read_bytes(image.path))) as photo:
            turn = choose_turn(_header_of(photo), image.height, image.width)  # before decoding: a bomb ends here
            photo.load()
            pixels = to_rgb(ImageOps.exif_transpose(photo) if turn == EXIF_TURNED else photo)
    except FileNotFoundError:
        raise UnusablePhoto("there is no such file") from None
    except UnusablePhoto:
        raise
    except Exception as error:
        raise UnusablePhoto(f"unreadable: {_one_line(error)}") from None
    return pixels, turn


def choose_turn(header: PhotoHeader, height: int, width: int) -> int:
    """Whether a photo must be turned to agree with its annotated size: EXIF_NONE, EXIF_TURNED or EXIF_KEPT.

    Raises:
        UnusablePhoto: it agrees neither turned nor unturned.
    """
    if (height, width) == header.turned_size:
        return EXIF_NONE if header.exif_orientation == 1 else EXIF_TURNED
    if (height, width) == (header.height, header.width):
        return EXIF_KEPT
    turned = header.turned_size
    raise UnusablePhoto(f"the photo is {turned[0]} x {turned[1]} px (H x W), but annotated as {height} x {width}")


def to_rgb(photo: Image.Image) -> np.ndarray:
    """A decoded Pillow image as uint8 [H, W, 3] RGB; 16-bit grey keeps its high byte, transparency is
    dropped.
    """
    if photo.mode.startswith("I"):
        grey = np.asarray(photo)
        grey = (np.clip(grey.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(photo.convert("RGB"))  # a copy: torch wants writable memory


def _header_of(photo: Image.Image) -> PhotoHeader:
    orientation = photo.getexif().get(_ORIENTATION_TAG, 1)
    if photo.format == "TIFF" or orientation not in range(2, 9):  # Pillow turns TIFFs by itself
        orientation = 1
    return PhotoHeader(photo.height, photo.width, int(orientation))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
