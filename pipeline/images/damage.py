"""Damage that Pillow overlooks: finds what is missing of a JPEG or PNG that opens and decodes without an error."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from PIL import Image, ImageChops

from pipeline.images.pixels import Unsupported

# The decoder fills what is missing with these values of all bands; Adobe's CMYK is inverted.
_FILLED = (127, 128)
_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_START_OF_SCAN, _END, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
# What may follow the pixels of a scan: tables, another scan, a restart interval, a comment, the end.
_AFTER_PIXELS = (b"\xff\xc4", b"\xff\xdb", b"\xff\xda", b"\xff\xdd", b"\xff\xfe", b"\xff\xd9")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_ALL_COEFFICIENTS = (1 << 64) - 1
_PADDING = bytes(range(1, 255)) * 2  # more than the bits of any block


@dataclass(frozen=True)
class _Scan:
    """One scan of a JPEG: the bytes of its pixels, its components, coefficients start..end, and bits left for later."""

    begin: int
    end: int
    components: tuple[int, ...]
    first: int
    last: int
    low_bit: int
    restart_interval: int


@dataclass(frozen=True)
class _Jpeg:
    """The structure of a JPEG's first picture; `components` are (id, horizontal, vertical sampling).

    There are no scans where they cannot be followed to the end mark, which is left to the decoder.
    """

    process: int
    height: int
    width: int
    components: tuple[tuple[int, int, int], ...]
    scans: tuple[_Scan, ...]
    has_end: bool


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


def find_damage(data: bytes, name: str | None) -> str | None:
    """The damage of a file that Pillow would take for whole, as text; None for none. `name` is its format."""
    if name == "PNG":
        return _png_damage(data)
    return _jpeg_damage(data) if name in ("JPEG", "MPO") else None


def is_cut(data: bytes, picture: Image.Image, draft_size: tuple[int, int] | None = None) -> bool:
    """Whether pixels are missing from a JPEG that has an end mark, where the decoder has filled in grey.

    Where a picture looks so, it is decoded again with further bytes before each mark: these change what is grey only
    where bytes are missing. A progressive picture is never filled with grey.

    Args:
        data: a file in which `find_damage` found nothing.
        picture: loaded from it.
        draft_size: the (width, height) that its `draft` was asked for.
    """
    if picture.format not in ("JPEG", "MPO") or picture.info.get("progressive"):
        return False
    jpeg = _parse_jpeg(data, only_start=True)
    if jpeg is None or not jpeg.scans:
        return False
    # Each of several scans holds one colour, so that what is missing is not grey.
    several_scans = len(jpeg.scans[0].components) < len(jpeg.components)
    corner = picture.getpixel((picture.width - 1, picture.height - 1))
    is_grey = all(value in _FILLED for value in (corner if isinstance(corner, tuple) else (corner,)))
    if not (several_scans or is_grey or jpeg.scans[0].restart_interval):
        return False
    # Blocks of 4 lie inside the blocks of 8, at whose edges the colours of others may be smoothed in. A block is taken
    # for filled by its middle and its mean.
    block = max(1, 4 * picture.width // jpeg.width)
    blocks = (-(-picture.width // block), -(-picture.height // block))
    filled = _all_bands(picture.resize(blocks, Image.Resampling.NEAREST), lambda value: value in _FILLED)
    if filled.getbbox() is not None:
        filled = ImageChops.darker(filled, _all_bands(picture.reduce(block), lambda value: value in _FILLED))
    if not several_scans and filled.getbbox() is None:
        return False
    parts, position, whole = [], 0, _parse_jpeg(data)
    for scan in whole.scans if whole else ():
        pixels = _RESTART.sub(lambda mark: _PADDING + mark[0], data[scan.begin : scan.end])
        parts += [data[position : scan.begin], pixels, _PADDING]
        position = scan.end
    with Image.open(io.BytesIO(b"".join([*parts, data[position:]])), formats=["JPEG"]) as padded:
        if draft_size is not None:
            padded.draft(None, draft_size)
        padded.load()
        if several_scans:
            return padded.tobytes() != picture.tobytes()
        kept = _all_bands(ImageChops.difference(picture, padded), lambda value: value == 0)
        changed = ImageChops.invert(kept).reduce(block)
        return ImageChops.darker(filled, changed).getbbox() is not None


def _all_bands(picture: Image.Image, condition: Callable[[int], bool]) -> Image.Image:
    """8-bit grey: 255 where all bands of a pixel meet the condition, else 0."""
    table = [255 * condition(value) for value in range(256)]
    return reduce(ImageChops.darker, (band.point(table) for band in picture.split()))


def _jpeg_damage(data: bytes) -> str | None:
    jpeg = _parse_jpeg(data)
    if jpeg is None:
        return None
    if not jpeg.has_end:
        return "the file has no end-of-image marker"
    if not jpeg.scans:
        return None
    missing = {number: _ALL_COEFFICIENTS for number, _, _ in jpeg.components}
    for scan in jpeg.scans:
        if damage := _restart_damage(data, jpeg, scan):
            return damage
        for number in scan.components if scan.low_bit == 0 else ():
            done = (1 << scan.last + 1) - (1 << scan.first) if jpeg.process in _PROGRESSIVE else _ALL_COEFFICIENTS
            missing[number] = missing.get(number, 0) & ~done
    return "its last scans are missing" if any(missing.values()) else None


def _restart_damage(data: bytes, jpeg: _Jpeg, scan: _Scan) -> str | None:
    if not scan.restart_interval or not jpeg.height or not jpeg.width:
        return None
    sampling = {number: (across, down) for number, across, down in jpeg.components}
    most_across, most_down = (max(sides) for sides in zip(*sampling.values()))
    # A scan of one component is a sequence of its blocks, one of several a sequence of blocks of all.
    across, down = sampling.get(scan.components[0], (1, 1)) if len(scan.components) == 1 else (1, 1)
    unit_width, unit_height = 8 * most_across, 8 * most_down
    num_units = -(-jpeg.width * across // unit_width) * -(-jpeg.height * down // unit_height)
    expected = -(-num_units // scan.restart_interval) - 1
    position = scan.begin - 2
    for index in range(expected):
        position = data.find(bytes((0xFF, 0xD0 + index % 8)), position + 2, scan.end)
        if position < 0:
            return f"of its {expected} restart markers some are missing"
    return None


def _parse_jpeg(data: bytes, *, only_start: bool = False) -> _Jpeg | None:
    """The structure of a JPEG up to its end mark, or to the start of its pixels; None where there are none."""
    position, restart_interval, whole = 2, 0, False
    frame: tuple[int, int, int, tuple[tuple[int, int, int], ...]] | None = None
    scans: list[_Scan] = []
    ahead: dict[bytes, int] = {}  # the next place of each marker
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _END:
            whole = True
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        position += 2 + length
        if marker in _FRAME and frame is None and len(body) >= 6 and len(body) >= 6 + 3 * body[5]:
            height, width = struct.unpack_from(">HH", body, 1)
            components = ((body[i], body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, 6 + 3 * body[5], 3))
            frame = marker, height, width, tuple(components)
        elif marker == _RESTART_INTERVAL:
            restart_interval = int.from_bytes(body[:2], "big")
        elif marker == _START_OF_SCAN:
            if frame is None or not body or len(body) < 4 + 2 * body[0] or not body[0]:
                break
            numbers = tuple(body[1 : 1 + 2 * body[0] : 2])
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if only_start:
                scan = _Scan(position, len(data), numbers, first, min(last, 63), bits & 15, restart_interval)
                return _Jpeg(*frame, (scan,), False)
            followers = _AFTER_PIXELS[-1:] if body[0] == len(frame[3]) and frame[0] in _SEQUENTIAL else _AFTER_PIXELS
            for follower in followers:
                if ahead.get(follower, 0) < position:
                    end = data.find(follower, position)
                    ahead[follower] = end if end >= 0 else len(data)
            stop = min(ahead[follower] for follower in followers)
            scans.append(_Scan(position, stop, numbers, first, min(last, 63), bits & 15, restart_interval))
            position = stop
    if frame is None or not scans:
        return None
    whole = whole and all(across and down for _, across, down in frame[3])
    return _Jpeg(*frame, tuple(scans) if whole else (), data.find(b"\xff\xd9", scans[0].begin) >= 0)


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
