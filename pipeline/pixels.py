"""From an opened picture to the pixels a network sees, the same in training and in segmentation; see docs/formats.md.

Three channels are RGB, by the rules that make any picture RGB. Any other number are the picture's own bands. NumPy is
imported only where it is needed: most decode children never do.
"""

from __future__ import annotations

import struct
import zlib

from PIL import Image

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

TURNS_BACK = TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""What undoes that."""

_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258


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
