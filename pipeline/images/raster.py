"""TIFF reader for any number of bands, which Pillow does not open: TIFF 6.0 and BigTIFF, losslessly compressed."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipeline.images.pixels import to_unit

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIP_OFFSETS, _BANDS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT = 324, 325, 339
_PHOTOMETRIC, _ORIENTATION = 262, 274
_NONE, _DEFLATE = (1,), (8, 32946)
# LZW, PackBits, LZMA, Zstandard: byte streams that libtiff, inside Pillow, decompresses.
_BY_LIBTIFF = (5, 32773, 34925, 50000)
_MOST_BANDS = 1024
# WhiteIsZero, palette, YCbCr, CIE Lab: the stored numbers have to be converted to brightness or colour first.
_CODED = (0, 3, 6, 8)


class UnsupportedTiff(ValueError):
    """A TIFF of a kind that this reader does not take; the message names the kind."""


def is_tiff(data: bytes) -> bool:
    """Whether a file's first bytes are those of a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class TiffHeader:
    """The size in pixels as stored (before any turn), and the EXIF orientation 1..8, None where there is none."""

    height: int
    width: int
    orientation: int | None


def read_tiff_header(data: bytes) -> TiffHeader:
    """Size and orientation of the first page; no pixels are read.

    Raises:
        ValueError: a broken file.
    """
    try:
        tags = next(_iter_directories(data))
        orientation = int(tags.get(_ORIENTATION, 0))
        header = TiffHeader(int(tags[_HEIGHT]), int(tags[_WIDTH]), orientation if 1 <= orientation <= 8 else None)
    except Exception as error:  # broken files raise many kinds of errors
        raise ValueError(f"broken TIFF: {type(error).__name__}: {error}") from None
    if header.height < 1 or header.width < 1:
        raise ValueError(f"a TIFF of {header.height} x {header.width} pixels")
    return header


def read_tiff(data: bytes, *, max_pages: int = 10_000) -> NDArray[Any]:
    """The bands of a TIFF as stored: [H, W, C] of the file's own number type, in native byte order.

    Pages of the same size as the first one, directly after it, count as further bands, since some programs write one
    page for each band.

    Raises:
        UnsupportedTiff: a lossy compression, a number type other than integers of 8, 16 or 32 bits and floats of 16, 32
            or 64 bits, coded colours (such as a palette or YCbCr), or more pages than `max_pages`.
        ValueError: a broken file.
    """
    pages: list[NDArray[Any]] = []
    try:
        for tags in _iter_directories(data):
            if pages and (tags[_HEIGHT], tags[_WIDTH]) != pages[0].shape[:2]:
                break
            if len(pages) == max_pages:
                raise UnsupportedTiff(f"more than {max_pages} pages")
            pages.append(_read_page(data, tags))
    except (UnsupportedTiff, MemoryError):
        raise
    except Exception as error:  # broken files raise many kinds of errors: missing tags, short strips, bad zlib streams
        raise ValueError(f"broken TIFF: {type(error).__name__}: {error}") from None
    if not pages:
        raise ValueError("a TIFF without a page")
    if any(page.dtype != pages[0].dtype for page in pages):
        raise UnsupportedTiff("pages of different number types")
    return pages[0] if len(pages) == 1 else np.concatenate(pages, axis=2)


def read_tiff_bands(data: bytes, num_bands: int | None, *, max_pages: int = 10_000) -> NDArray[np.float32]:
    """The bands of a TIFF as float32 [H, W, C], scaled by `pipeline.images.pixels.to_unit`.

    Args:
        data: the whole file.
        num_bands: the C there must be; None allows any.
        max_pages: see `read_tiff`.

    Raises:
        UnsupportedTiff: as `read_tiff`; also where one band is wanted of several, which Pillow can convert to grey.
        WrongBands: the file has another number of bands.
        ValueError: a broken file.
    """
    samples = read_tiff(data, max_pages=max_pages)
    if num_bands == 1 and samples.shape[2] > 1:
        raise UnsupportedTiff(f"it has {samples.shape[2]} bands; 1 is wanted")
    return to_unit(samples, num_bands)


def _iter_directories(data: bytes) -> Iterator[Any]:
    """The tags of each page in turn, all in the same object, which the next page overwrites."""
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


def _read_page(data: bytes, tags: Any) -> NDArray[Any]:
    """The bands of one page: [H, W, C] in native byte order."""
    height, width, bands = int(tags[_HEIGHT]), int(tags[_WIDTH]), int(tags.get(_BANDS, 1))
    if bands > _MOST_BANDS:
        raise UnsupportedTiff(f"{bands} bands are more than {_MOST_BANDS}")
    if tags.get(_PHOTOMETRIC) in _CODED:
        raise UnsupportedTiff(f"photometric interpretation {tags[_PHOTOMETRIC]}")
    dtype = _dtype(tags, "<" if data[:2] == b"II" else ">")
    compression, predictor = int(tags.get(_COMPRESSION, 1)), int(tags.get(_PREDICTOR, 1))
    if compression not in (*_NONE, *_DEFLATE, *_BY_LIBTIFF):
        raise UnsupportedTiff(f"compression {compression}; a TIFF of many bands is read where it is lossless")
    if predictor not in (1, 3 if dtype.kind == "f" else 2):
        raise UnsupportedTiff(f"predictor {predictor} of {dtype.name}")
    is_planar = bands > 1 and int(tags.get(_PLANAR, 1)) == 2
    if _TILE_OFFSETS in tags:
        part = (int(tags[_TILE_HEIGHT]), int(tags[_TILE_WIDTH]))
        offsets, lengths = tags[_TILE_OFFSETS], tags[_TILE_BYTES]
    else:
        part = (min(int(tags.get(_ROWS_PER_STRIP, height)), height), width)
        offsets, lengths = tags[_STRIP_OFFSETS], tags[_STRIP_BYTES]
    down, across = math.ceil(height / part[0]), math.ceil(width / part[1])
    planes = bands if is_planar else 1
    bands_in_part = 1 if is_planar else bands
    canvas = np.zeros((planes, down * part[0], across * part[1], bands_in_part), dtype)
    for index in range(planes * down * across):
        plane, index_in_plane = divmod(index, down * across)
        top, left = index_in_plane // across * part[0], index_in_plane % across * part[1]
        # The last strip may be shorter than the others; a tile never is.
        num_rows = part[0] if _TILE_OFFSETS in tags else min(part[0], height - top)
        row_bytes = part[1] * bands_in_part * dtype.itemsize
        raw = _decompressed(data[offsets[index] : offsets[index] + lengths[index]], compression, num_rows, row_bytes)
        if len(raw) < num_rows * row_bytes:
            raise ValueError(f"part {index} is too short")
        values = _undo_predictor(raw[: num_rows * row_bytes], (num_rows, part[1], bands_in_part), dtype, predictor)
        canvas[plane, top : top + len(values), left : left + part[1]] = values
    page = canvas[:, :height, :width]
    page = page.transpose(1, 2, 0, 3).reshape(height, width, bands)
    return np.ascontiguousarray(page.astype(dtype.newbyteorder("=")))


def _decompressed(raw: bytes, compression: int, num_rows: int, row_bytes: int) -> bytes:
    """The bytes of one strip or tile, decompressed."""
    if compression in _NONE:
        return raw
    if compression in _DEFLATE:
        return zlib.decompressobj().decompress(raw, num_rows * row_bytes)
    # libtiff is given the part as an 8-bit grey TIFF, whatever its bytes mean.
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    tags = {_WIDTH: row_bytes, _HEIGHT: num_rows, _BITS: 8, _COMPRESSION: compression, _PHOTOMETRIC: 1, _BANDS: 1}
    for tag, value in (tags | {_STRIP_OFFSETS: 0, _ROWS_PER_STRIP: num_rows, _STRIP_BYTES: len(raw)}).items():
        directory[tag] = value
    content = b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + raw  # Pillow counts offsets from the tags' end
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as grey:
        return grey.tobytes()


def _undo_predictor(raw: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any], predictor: int) -> NDArray[Any]:
    """The values of one strip or tile, for which predictors 2 and 3 store the differences along each row."""
    if predictor == 3:  # each row has the highest bytes of all its numbers first, then the next lower ones, and so on
        steps = np.frombuffer(raw, np.uint8).reshape(shape[0], -1, shape[2])
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(shape[0], dtype.itemsize, -1)
        numbers = np.ascontiguousarray(planes.swapaxes(1, 2)).view(dtype.newbyteorder(">"))
        return numbers.reshape(shape)
    values = np.frombuffer(raw, dtype).reshape(shape)
    return np.cumsum(values, axis=1, dtype=dtype) if predictor == 2 else values


def _dtype(tags: Any, endian: str) -> np.dtype[Any]:
    """The number type of a page's samples."""
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
