"""Conversion of opened pictures to the pixels a network sees: EXIF turn, RGB or float bands.

Training and segmentation both use it, so they see the same pixels; docs/formats.md states the rules. Three channels are
RGB, to which any picture is converted. Any other number of channels are the picture's own bands.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


class Unsupported(ValueError):
    """A file that may be whole, of a kind that is not read; the message names the kind."""


class WrongBands(Unsupported):
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


def to_rgb(picture: Image.Image, data: bytes = b"") -> Image.Image:
    """A picture of any mode as 8-bit RGB.

    Samples of more than 8 bits become 8 bits as `to_8_bits` says. Transparent pixels are blended over white; the alpha
    of a TIFF only where it is a mask, since other fourth bands are named alpha there too.

    Args:
        picture: of any mode.
        data: the content of its file: Pillow cannot tell the 12 bits of a coloured PNG that stores them in 16.

    Raises:
        ValueError: none of the float samples is a finite number.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_grey(picture)
    if data[24:26] in (b"\x10\x02", b"\x10\x06") and picture.format == "PNG":
        if max(high for _, high in picture.getextrema()[:3]) < 16:  # type: ignore[misc]
            return _from_dark_png(data)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        alpha = rgba.getchannel("A")
        if picture.format != "TIFF" or is_mask(alpha):
            return over_white(rgba.convert("RGB"), alpha)
    return picture.convert("RGB")


def to_8_bits(samples: NDArray[Any], *, whole_range: bool = False) -> NDArray[np.uint8]:
    """Samples of any number type and shape as uint8.

    16-bit samples keep their high byte. Where the largest of them fits into 8, 10 or 12 bits, the samples are taken to
    have so many bits, and keep the highest 8 of these: the picture would be black otherwise. Signed and 32-bit integers
    and floats are scaled from their own range (smallest to largest finite sample) to 0..255; a constant picture is
    black.

    Args:
        samples: uint8 is returned as it is.
        whole_range: scales by the range of the number type instead; that of floats is 0 to 1.

    Raises:
        ValueError: none of the samples is a finite number.
    """
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype == np.uint16:
        largest = 65535 if whole_range else int(samples.max(initial=0))
        bits = next((bits for bits in (8, 10, 12) if largest < 1 << bits), 16)
        return (samples >> (bits - 8)).astype(np.uint8)
    scaled = np.array(samples, np.float64)  # changed in place below, because it may be large
    finite = np.isfinite(scaled)
    if not finite.any():
        raise ValueError("no sample is a finite number")
    if whole_range:
        low, high = 0.0, 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max)
        np.clip(scaled, low, high, out=scaled)
    else:
        low, high = scaled.min(where=finite, initial=np.inf), scaled.max(where=finite, initial=-np.inf)
    scaled[~finite] = low
    scaled -= low
    scaled *= 255.0 / (high - low) if high > low else 0.0
    return np.rint(scaled, out=scaled).astype(np.uint8)


def is_mask(alpha: Image.Image) -> bool:
    """Whether most of the 8-bit alpha that is not 0 is 255: a mask, and no other band that is named alpha."""
    counts = alpha.histogram()
    return counts[255] * 2 > sum(counts[1:])


def over_white(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """The picture blended over white by its alpha."""
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=alpha)
    return white


def to_bands(picture: Image.Image, num_bands: int | None) -> NDArray[np.float32]:
    """The picture's own bands, float32 [H, W, C], scaled by `to_unit`; palettes, CMYK, YCbCr, Lab and HSV become RGB.

    Args:
        picture: of any mode.
        num_bands: how many bands there must be; 1 converts a coloured picture to grey; None takes all bands.

    Raises:
        WrongBands: the picture has another number of bands.
    """
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


def _from_grey(picture: Image.Image) -> Image.Image:
    """RGB of grey of 16 bits, 32 bits or floats; a 16-bit colour key lies on white."""
    samples = np.asarray(picture)
    if picture.mode == "I" and picture.format in ("PPM", "PNG"):  # which Pillow holds as 32-bit integers
        samples = samples.clip(0, 65535).astype(np.uint16)
    grey = Image.fromarray(to_8_bits(samples)).convert("RGB")
    key = picture.info.get("transparency")
    if isinstance(key, int) and samples.dtype == np.uint16:
        return over_white(grey, Image.fromarray(((samples != key) * 255).astype(np.uint8)))
    return grey


def _from_dark_png(data: bytes) -> Image.Image:
    """RGB of a coloured 16-bit PNG, by all of its bits."""
    import imagecodecs

    samples = imagecodecs.png_decode(data)
    picture = Image.fromarray(to_8_bits(samples[..., :3]))
    if samples.shape[2] == 3:
        return picture
    return over_white(picture, Image.fromarray(to_8_bits(samples[..., 3], whole_range=True)))
