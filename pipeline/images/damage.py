"""Pixels of JPEGs and PNGs, all of which are there: what Pillow would fill in or overlook is an error."""

from __future__ import annotations

import re
import struct
import zlib

import simplejpeg
from PIL import Image

from pipeline.images.pixels import Unsupported

_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_START, _START_OF_SCAN, _END = 0xD8, 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # not those that stand among pixels
_ALL_COEFFICIENTS = (1 << 64) - 1
# What libjpeg warns of when it has filled in pixels. Bytes too many before the end mark leave none out.
_FILLED_IN = re.compile(r"Premature end|Corrupt JPEG data: (?!\d+ extraneous bytes before marker 0xd9)")


def check_readable(data: bytes, name: str | None) -> None:
    """Raises Unsupported for a JPEG of a kind that no decoder here reads. `name` is the format of `data`."""
    if name not in ("JPEG", "MPO"):
        return
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF and data[position + 1] != _START_OF_SCAN:
        marker = data[position + 1]
        if marker in _FRAME:
            if marker not in _SEQUENTIAL + _PROGRESSIVE:
                raise Unsupported(f"a JPEG of process {marker - 0xC0}, such as a lossless or hierarchical one")
            if data[position + 4] in (12, 16):
                raise Unsupported(f"a JPEG of {data[position + 4]} bits a sample")
            return
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def load_whole(picture: Image.Image, data: bytes, draft_size: tuple[int, int] | None = None) -> Image.Image:
    """The picture with its pixels, of which none is filled in: loaded in place, or a new one of the same mode.

    JPEGs are decoded by libjpeg-turbo through simplejpeg, which gives the pixels that Pillow gives and, as Pillow does
    not, libjpeg's warnings. Where libjpeg warns of the header already, which hides its later warnings, or there are
    four colours, the pixels are Pillow's.

    Args:
        picture: opened from `data`, not loaded.
        data: the file.
        draft_size: the (width, height) that a JPEG may be scaled down to while it is decoded, as by `draft`.

    Raises:
        ValueError: the file lacks pixels.
        Exception: anything that Pillow raises on a broken file.
    """
    if picture.format == "PNG" and (damage := _png_damage(data)):
        raise ValueError(damage)
    if picture.format in ("JPEG", "MPO"):
        if _lacks_scans(data):
            raise ValueError("its last scans are missing")
        if draft_size is not None:
            picture.draft(None, draft_size)
        if (whole := _decode_jpeg(picture, data)) is not None:
            return whole
    picture.load()
    return picture


def _decode_jpeg(picture: Image.Image, data: bytes) -> Image.Image | None:
    """A JPEG at the size of `picture`; None where the pixels are to be Pillow's. Raises ValueError as `load_whole`."""
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    colours = "GRAY" if picture.mode == "L" else picture.mode
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=picture.height, min_width=picture.width)
    except ValueError as error:
        if _FILLED_IN.match(str(error)):
            raise
        return None
    whole = Image.fromarray(pixels[..., 0] if colours == "GRAY" else pixels)
    return whole if (whole.mode, whole.size) == (picture.mode, picture.size) else None


def _lacks_scans(data: bytes) -> bool:
    """Whether some coefficients of a JPEG's first picture are in none of its scans, of which libjpeg does not warn."""
    missing: dict[int, int] = {}  # by the number of the component
    position, is_progressive = 2, False
    while (mark := _MARKER.search(data, position)) and mark[1][0] != _END:
        marker, position = mark[1][0], mark.end()
        if marker == _START:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        body, position = data[position + 2 : position + length], position + length
        if marker in _FRAME and len(body) >= 6 and len(body) >= 6 + 3 * body[5] and not missing:
            missing, is_progressive = (
                dict.fromkeys(body[6 : 6 + 3 * body[5] : 3], _ALL_COEFFICIENTS),
                marker in _PROGRESSIVE,
            )
        elif marker == _START_OF_SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            done = (1 << min(last, 63) + 1) - (1 << first) if is_progressive else _ALL_COEFFICIENTS
            for number in body[1 : 1 + 2 * body[0] : 2] if bits & 15 == 0 else ():  # else bits are left for later
                missing[number] = missing.get(number, 0) & ~done
            if not any(missing.values()):
                return False
    return any(missing.values())


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
