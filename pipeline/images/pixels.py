"""From an opened picture to the pixels a network sees, the same in training and in segmentation; see docs/formats.md.

Three channels are RGB, by the rules that make any picture RGB. Any other number are the picture's own bands. NumPy is
imported only where it is needed: most decode children never do.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of an EXIF orientation upright."""

TURNED_BACK_BY = {6: 8, 8: 6}
"""The orientation whose turn undoes that of another; all others undo themselves."""

_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258


class WrongBands(ValueError):
    """A file of other bands than the network takes."""


def orientation_of(picture: Image.Image) -> int | None:
    """1..8 from EXIF, else XMP, else ImageMagick's text; None when there is none or it cannot be read.

    Raises:
        OSError, MemoryError: of a PNG, which reads its pixels on the way to EXIF.
    """
    try:
        value = picture.getexif().get(_ORIENTATION_TAG)
    except (MemoryError, OSError):
        raise
    except Exception:  # damaged metadata raises anything from struct.error to SyntaxError; the picture may be whole
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: high byte of 16-bit samples, own range of 32-bit and float samples, alpha over white.

    Raises:
        ValueError: float samples of which none is a finite number.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PPM", "PNG")):
        return _from_16_bit(picture)
    if picture.mode in ("I", "F"):
        return _from_own_range(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))
    return picture.convert("RGB")


def to_bands(picture: Image.Image, num_bands: int | None) -> np.ndarray:
    """The picture's own bands as `to_unit` gives them; palettes and CMYK become the RGB they mean.

    Args:
        picture: of any mode.
        num_bands: how many there must be; 1 makes grey of a coloured picture; None takes those there are.

    Raises:
        WrongBands: it has others.
    """
    import numpy as np

    if num_bands == 1 and picture.mode not in ("L", "1", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("L")
    elif picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    samples = np.atleast_3d(np.array(picture))
    # 16-bit grey is held as 32-bit numbers by some of Pillow's plugins.
    return to_unit(np.clip(samples, 0, 65535).astype(np.uint16) if picture.mode == "I" else samples, num_bands)


def to_unit(samples: np.ndarray, num_bands: int | None = None) -> np.ndarray:
    """Bands [H, W, C] as float32: whole numbers divided by the largest of their type, floats as they are.

    Raises:
        WrongBands: C is not `num_bands`.
    """
    import numpy as np

    if num_bands not in (None, samples.shape[2]):
        raise WrongBands(f"it has {samples.shape[2]} bands; {num_bands} are wanted")
    values = samples.astype(np.float32)
    return values if samples.dtype.kind in "fb" else np.divide(values, np.iinfo(samples.dtype).max, out=values)


def turn(samples: np.ndarray, orientation: int | None) -> np.ndarray:
    """An array [H, W, C] of an EXIF orientation, made upright (a view)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def find_damage(data: bytes, name: str | None) -> str | None:
    """What is wrong with a file that Pillow would take for whole; `name` is its format. None for nothing."""
    return _DAMAGE[name](data) if name in _DAMAGE else None


def _jpeg_damage(data: bytes) -> str | None:
    """Whether the end is missing; a file filled up with zeros is half grey to Pillow, not an error."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:  # start of the pixels, in which FF D9 can only be the end
            found = data.find(b"\xff\xd9", position)
            return None if found >= 0 else "the file has no end-of-image marker"
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if data[position + 1] == 0xFF else 2 + length
    return None


def _png_damage(data: bytes) -> str | None:
    """Whether the pixels fail their checksum, which Pillow does not compare; None when they do not."""
    position, kind = 8, b""
    while position + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        checksum = data[end : end + 4]
        if kind == b"IDAT" and zlib.crc32(data[position + 4 : end]).to_bytes(4, "big") != checksum:
            return "the checksum of the pixels does not match them"
        position = end + 4
    return None


_DAMAGE = {"JPEG": _jpeg_damage, "MPO": _jpeg_damage, "PNG": _png_damage}


def _from_16_bit(picture: Image.Image) -> Image.Image:
    """The high byte of each sample (of 12-bit TIFF the high 8 of its 12 bits), in all three channels."""
    import numpy as np

    bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, (16,))[0]
    samples = np.asarray(picture)
    grey = Image.fromarray((samples >> (bits - 8)).clip(0, 255).astype(np.uint8))
    key = picture.info.get("transparency")
    if isinstance(key, int):
        return _over_white(grey.convert("RGB"), Image.fromarray(((samples != key) * 255).astype(np.uint8)))
    return grey.convert("RGB")


def _from_own_range(picture: Image.Image) -> Image.Image:
    """Smallest..largest finite sample to 0..255 (their type's range says nothing); a flat picture is black."""
    import numpy as np

    samples = np.array(picture, np.float64)  # worked on in place: it may be large
    finite = np.isfinite(samples)
    if not finite.any():
        raise ValueError("no sample is a finite number")
    low, high = samples.min(where=finite, initial=np.inf), samples.max(where=finite, initial=-np.inf)
    samples[~finite] = low
    samples -= low
    samples *= 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint(samples, out=samples).astype(np.uint8)).convert("RGB")


def _over_white(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=alpha)
    return white
