"""TIFF writer for the tests: any number of bands, written from the specification, independent of the reader."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import numpy as np


def tiff_bytes(
    bands: np.ndarray,
    *,
    endian: Literal["<", ">"] = "<",
    planar: bool = False,
    tile: int = 0,
    rows_per_strip: int = 3,
    deflate: bool = False,
    predictor: bool = False,
    compression: int | None = None,
    orientation: int = 1,
    photometric: int = 1,
    extra_samples: tuple[int, ...] = (),
) -> bytes:
    """Bands [H, W, C] as a TIFF file of strips, or of square tiles of `tile` pixels."""
    height, width, count = bands.shape
    values = bands.astype(bands.dtype.newbyteorder(endian))
    planes = [values[..., i : i + 1] for i in range(count)] if planar else [values]
    parts = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            parts += [
                padded[y : y + tile, x : x + tile]
                for y in range(0, padded.shape[0], tile)
                for x in range(0, padded.shape[1], tile)
            ]
        else:
            parts += [plane[y : y + rows_per_strip] for y in range(0, height, rows_per_strip)]
    if predictor:
        parts = [np.concatenate([p[:, :1], p[:, 1:] - p[:, :-1]], axis=1).astype(p.dtype) for p in parts]
    chunks = [zlib.compress(part.tobytes()) if deflate else part.tobytes() for part in parts]
    sample_format = {"u": 1, "i": 2, "f": 3, "c": 6}[bands.dtype.kind]
    offsets, position = [], 8
    for chunk in chunks:
        offsets.append(position)
        position += len(chunk)
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bands.dtype.itemsize * 8] * count),
        259: (3, [compression or (8 if deflate else 1)]),
        262: (3, [photometric]),
        274: (3, [orientation]),
        277: (3, [count]),
        284: (3, [2 if planar else 1]),
        317: (3, [2 if predictor else 1]),
        339: (3, [sample_format] * count),
    }
    if extra_samples:
        tags[338] = (3, list(extra_samples))
    if tile:
        tags |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, offsets), 325: (4, [len(c) for c in chunks])}
    else:
        tags |= {273: (4, offsets), 278: (4, [rows_per_strip]), 279: (4, [len(c) for c in chunks])}
    body = b"".join(chunks)
    extra_at = 8 + len(body) + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, (field_type, field) in sorted(tags.items()):
        packed = struct.pack(f"{endian}{len(field)}{'H' if field_type == 3 else 'I'}", *field)
        if len(packed) > 4:
            value_or_offset = struct.pack(f"{endian}I", extra_at + len(extra))
            extra += packed
        else:
            value_or_offset = packed.ljust(4, b"\0")
        entries += struct.pack(f"{endian}HHI", tag, field_type, len(field)) + value_or_offset
    header = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}I", 8 + len(body))
    return header + body + struct.pack(f"{endian}H", len(tags)) + entries + struct.pack(f"{endian}I", 0) + extra


def random_bands(dtype: str, count: int = 5, height: int = 11, width: int = 14) -> np.ndarray:
    """[H, W, C] of 200 different values: 0..199, or 0..1 for floats; the same for the same arguments."""
    values = np.random.default_rng(count).integers(0, 200, (height, width, count))
    return (values / 200).astype(dtype) if dtype.startswith("f") else values.astype(dtype)
