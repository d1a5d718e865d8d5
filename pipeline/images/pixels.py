"""Conversion of opened pictures to the pixels a network sees: EXIF turn, RGB or float bands, damage checks.

Training and segmentation both use it, so they see the same pixels; docs/formats.md states the rules. Three channels are
RGB, to which any picture is converted. Any other number of channels are the picture's own bands. NumPy is imported only
where it is needed, because most decode children never need it.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from typing import TypeVar

    import numpy as np
    from numpy.typing import NDArray

    _Sample = TypeVar("_Sample", bound=np.generic)

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture of an EXIF orientation upright; 1 is upright already."""

TURNED_BACK_BY = {6: 8, 8: 6}
"""The orientation whose turn undoes the turn of another. Turns that are not named here undo themselves."""

_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258


class WrongBands(ValueError):
    """A file has another number of bands than the network takes."""


def orientation_of(picture: Image.Image) -> int | None:
    """The orientation, 1..8, from EXIF, else XMP, else ImageMagick's text; None when there is none or it is unreadable.

    Raises:
        OSError, MemoryError: the pixels of a PNG cannot be read, which Pillow does on the way to its EXIF.
    """
    try:
        value = picture.getexif().get(_ORIENTATION_TAG)
    except (MemoryError, OSError):
        raise
    except Exception:  # broken metadata raises anything from struct.error to SyntaxError; the pixels may be whole
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB.

    16-bit samples keep their high byte. 32-bit and float samples are scaled from their own range to 0..255. Transparent
    pixels are blended over white.

    Raises:
        ValueError: none of the float samples is a finite number.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PPM", "PNG")):
        return _from_16_bit(picture)
    if picture.mode in ("I", "F"):
        return _from_own_range(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))
    return picture.convert("RGB")


def to_bands(picture: Image.Image, num_bands: int | None) -> NDArray[np.float32]:
    """The picture's own bands, float32 [H, W, C], scaled by `to_unit`; palettes, CMYK, YCbCr, Lab and HSV become RGB.

    Args:
        picture: of any mode.
        num_bands: how many bands there must be; 1 converts a coloured picture to grey; None takes all bands.

    Raises:
        WrongBands: the picture has another number of bands.
    """
    import numpy as np

    if num_bands == 1 and picture.mode not in ("L", "1", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("L")
    elif picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    samples = np.atleast_3d(np.array(picture))
    # Some of Pillow's plugins hold 16-bit grey as 32-bit integers.
    return to_unit(np.clip(samples, 0, 65535).astype(np.uint16) if picture.mode == "I" else samples, num_bands)


def to_unit(samples: NDArray[Any], num_bands: int | None = None) -> NDArray[np.float32]:
    """Bands [H, W, C] as float32: integers divided by the largest value of their type, floats unchanged.

    Args:
        samples: [H, W, C] of any integer, bool or float type.
        num_bands: the C there must be; None allows any.

    Raises:
        WrongBands: C is not `num_bands`.
    """
    import numpy as np

    if num_bands not in (None, samples.shape[2]):
        raise WrongBands(f"it has {samples.shape[2]} bands; {num_bands} are wanted")
    values = samples.astype(np.float32)
    return values if samples.dtype.kind in "fb" else np.divide(values, np.iinfo(samples.dtype).max, out=values)


def turn(samples: NDArray[_Sample], orientation: int | None) -> NDArray[_Sample]:
    """An array [H, W, C] turned upright from an EXIF orientation (a view); unchanged for 1, None and unknown ones."""
    if orientation in SIDEWAYS:
        samples = samples.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return samples[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def find_damage(data: bytes, name: str | None) -> str | None:
    """The damage of a file that Pillow would take for whole, as text; None for none. `name` is its format."""
    return _DAMAGE[name](data) if name in _DAMAGE else None


def _jpeg_damage(data: bytes) -> str | None:
    """Finds a missing end-of-image marker: Pillow decodes a cut file that is filled up with zeros as half grey."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:  # the pixels start here, and in them FF D9 can only be the end marker
            has_end = data.find(b"\xff\xd9", position) >= 0
            return None if has_end else "the file has no end-of-image marker"
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if data[position + 1] == 0xFF else 2 + length
    return None


def _png_damage(data: bytes) -> str | None:
    """Finds pixel chunks whose checksum is wrong, which Pillow does not compare."""
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
    """RGB of 16-bit grey: the high byte of each sample; of a 12-bit TIFF, the high 8 of its 12 bits."""
    import numpy as np

    bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, (16,))[0]
    samples = np.asarray(picture)
    grey = Image.fromarray((samples >> (bits - 8)).clip(0, 255).astype(np.uint8))
    key = picture.info.get("transparency")
    if isinstance(key, int):
        return _over_white(grey.convert("RGB"), Image.fromarray(((samples != key) * 255).astype(np.uint8)))
    return grey.convert("RGB")


def _from_own_range(picture: Image.Image) -> Image.Image:
    """RGB of 32-bit or float grey: the smallest..largest finite sample to 0..255; a constant picture is black.

    The range of such a type says nothing about the range of the picture.
    """
    import numpy as np

    samples = np.array(picture, np.float64)  # changed in place below, because it may be large
    finite = np.isfinite(samples)
    if not finite.any():
        raise ValueError("no sample is a finite number")
    low, high = samples.min(where=finite, initial=np.inf), samples.max(where=finite, initial=-np.inf)
    samples[~finite] = low
    samples -= low
    samples *= 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint(samples, out=samples).astype(np.uint8)).convert("RGB")


def _over_white(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """The picture blended over white by its alpha."""
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=alpha)
    return white
