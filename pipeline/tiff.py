"""TIFFs of any number of bands, which Pillow does not open: baseline TIFF 6.0, uncompressed or deflate."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipeline.pixels import to_unit

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIP_OFFSETS, _BANDS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT = 324, 325, 339
_PHOTOMETRIC, _ORIENTATION = 262, 274
_DEFLATE = (8, 32946)
_MOST_BANDS = 1024
# White is zero, palette, YCbCr, CIE Lab: the numbers in the file are not yet what they mean.
_CODED = (0, 3, 6, 8)


class UnsupportedTiff(ValueError):
    """A TIFF in a form that is not read here; the message names the form."""


def is_tiff(data: bytes) -> bool:
    """Whether these bytes begin as a TIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class TiffHeader:
    """Size as stored in pixels (before any turn), and the orientation 1..8 as EXIF counts it, None without one."""

    height: int
    width: int
    orientation: int | None


def read_tiff_header(data: bytes) -> TiffHeader:
    """What the first page says of itself; no pixels are read.

    Raises:
        ValueError: a broken file.
    """
    try:
        tags = next(_iter_directories(data))
        orientation = int(tags.get(_ORIENTATION, 0))
        header = TiffHeader(int(tags[_HEIGHT]), int(tags[_WIDTH]), orientation if 1 <= orientation <= 8 else None)
    except Exception as error:  # a broken file shows in many ways
        raise ValueError(f"broken TIFF: {type(error).__name__}: {error}") from None
    if header.height < 1 or header.width < 1:
        raise ValueError(f"a TIFF of {header.height} x {header.width} pixels")
    return header


def read_tiff(data: bytes, *, max_pages: int = 10_000) -> np.ndarray:
    """The bands of a TIFF as stored: [H, W, C] of the file's own number type, native byte order.

    Pages of the same size as the first one count as further bands, since some programs write one page for
    each band.

    Raises:
        UnsupportedTiff: another compression than none and deflate, a number type other than whole or
            floating-point numbers of 8, 16, 32 or 64 bits, coded colours (a palette, YCbCr), or more pages than
            `max_pages`.
        ValueError: a broken file.
    """
    pages: list[np.ndarray] = []
    try:
        for tags in _iter_directories(data):
            if pages and (tags[_HEIGHT], tags[_WIDTH]) != pages[0].shape[:2]:
                break
            if len(pages) == max_pages:
                raise UnsupportedTiff(f"more than {max_pages} pages")
            pages.append(_read_page(data, tags))
    except (UnsupportedTiff, MemoryError):
        raise
    except Exception as error:  # a broken file shows in many ways: missing tags, short strips, bad zlib streams
        raise ValueError(f"broken TIFF: {type(error).__name__}: {error}") from None
    if not pages:
        raise ValueError("a TIFF without a page")
    if any(page.dtype != pages[0].dtype for page in pages):
        raise UnsupportedTiff("pages of different number types")
    return pages[0] if len(pages) == 1 else np.concatenate(pages, axis=2)


def read_tiff_bands(data: bytes, num_bands: int | None, *, max_pages: int = 10_000) -> np.ndarray:
    """The bands of `read_tiff` as `pipeline.pixels.to_unit` gives them: float32 [H, W, num_bands]; None for any number.

    Raises:
        UnsupportedTiff, ValueError: as `read_tiff`; also where grey is wanted of a colour, which Pillow makes.
        WrongBands: it has others.
    """
    samples = read_tiff(data, max_pages=max_pages)
    if num_bands == 1 and samples.shape[2] > 1:
        raise UnsupportedTiff(f"it has {samples.shape[2]} bands; 1 is wanted")
    return to_unit(samples, num_bands)


def _iter_directories(data: bytes) -> Iterator[Any]:
    """The tags of one page after another; the same object each time."""
    stream = io.BytesIO(data)
    directory = ImageFileDirectory_v2(stream.read(16 if data[2:3] in b"+" or data[3:4] == b"+" else 8))
    seen: set[int] = set()
    while directory.next:
        if directory.next in seen:
            raise ValueError("its pages go round in a circle")
        seen.add(directory.next)
        stream.seek(directory.next)
        directory.load(stream)
        yield directory


def _read_page(data: bytes, tags: Any) -> np.ndarray:
    height, width, bands = int(tags[_HEIGHT]), int(tags[_WIDTH]), int(tags.get(_BANDS, 1))
    if bands > _MOST_BANDS:
        raise UnsupportedTiff(f"{bands} bands are more than {_MOST_BANDS}")
    if tags.get(_PHOTOMETRIC) in _CODED:
        raise UnsupportedTiff(f"photometric interpretation {tags[_PHOTOMETRIC]}")
    dtype = _dtype(tags, "<" if data[:2] == b"II" else ">")
    compression, predictor = int(tags.get(_COMPRESSION, 1)), int(tags.get(_PREDICTOR, 1))
    if compression != 1 and compression not in _DEFLATE:
        raise UnsupportedTiff(f"compression {compression}; a TIFF of many bands is read uncompressed or with deflate")
    if predictor not in (1, 2) or (predictor == 2 and dtype.kind == "f"):
        raise UnsupportedTiff(f"predictor {predictor}; none and horizontal differencing of whole numbers are read")
    is_planar = bands > 1 and int(tags.get(_PLANAR, 1)) == 2
    if _TILE_OFFSETS in tags:
        part = (int(tags[_TILE_HEIGHT]), int(tags[_TILE_WIDTH]))
        offsets, lengths = tags[_TILE_OFFSETS], tags[_TILE_BYTES]
    else:
        part = (min(int(tags.get(_ROWS_PER_STRIP, height)), height), width)
        offsets, lengths = tags[_STRIP_OFFSETS], tags[_STRIP_BYTES]
    down, across = math.ceil(height / part[0]), math.ceil(width / part[1])
    planes = bands if is_planar else 1
    in_part = 1 if is_planar else bands
    canvas = np.zeros((planes, down * part[0], across * part[1], in_part), dtype)
    for place in range(planes * down * across):
        plane, rest = divmod(place, down * across)
        top, left = rest // across * part[0], rest % across * part[1]
        raw = data[offsets[place] : offsets[place] + lengths[place]]
        if compression in _DEFLATE:
            raw = zlib.decompressobj().decompress(raw, part[0] * part[1] * in_part * dtype.itemsize)
        # The last strip may be shorter than the others; a tile never is.
        values = np.frombuffer(raw, dtype)
        rows = len(values) // (part[1] * in_part)
        if rows < min(part[0], height - top):
            raise ValueError(f"part {place} is too short")
        values = values[: rows * part[1] * in_part].reshape(rows, part[1], in_part)[: part[0]]
        if predictor == 2:
            values = np.cumsum(values, axis=1, dtype=dtype)
        canvas[plane, top : top + len(values), left : left + part[1]] = values
    page = canvas[:, :height, :width]
    page = page.transpose(1, 2, 0, 3).reshape(height, width, bands)
    return np.ascontiguousarray(page.astype(dtype.newbyteorder("=")))


def _dtype(tags: Any, endian: str) -> np.dtype:
    bits = tags.get(_BITS, (1,))
    formats = tags.get(_SAMPLE_FORMAT, (1,))
    bits, formats = (set(value) if isinstance(value, tuple) else {value} for value in (bits, formats))
    kinds = {1: "u", 2: "i", 3: "f"}
    if len(bits) != 1 or len(formats) != 1 or (form := next(iter(formats))) not in kinds:
        raise UnsupportedTiff(f"bands of {sorted(bits)} bits in formats {sorted(formats)}")
    size = next(iter(bits))
    if size not in ((16, 32, 64) if form == 3 else (8, 16, 32)):
        raise UnsupportedTiff(f"bands of {size} bits")
    return np.dtype(f"{endian}{kinds[form]}{size // 8}")
