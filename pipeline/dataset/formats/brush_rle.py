"""Label Studio's run-length encoding of brush masks: bits of runs and of single values, of an image of four channels.

32 bits: number of values; 5: bits of a value, less 1; four times 4: bits of a length, less 1. Then blocks: 1 bit (1 is
a run of one value, 0 are single values), 2 bits (which of the four sizes of a length), the length less 1, and the value
or values.
https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHANNELS = 4  # red, green, blue, alpha; alpha is the mask
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)


def decode_brush(rle: Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask of a brush: bool [H, W], where the alpha channel is not 0.

    Args:
        rle: bytes, 0 to 255 each.

    Raises:
        ValueError: it does not describe all pixels; the message is the end of a sentence.
    """
    bits = np.unpackbits(np.array(rle, dtype=np.uint8))
    position = 0

    def read(size: int) -> int:
        nonlocal position
        if position + size > len(bits):
            raise ValueError(f"has an rle of {len(rle)} bytes, which ends too early")
        value = int("".join(map(str, bits[position : position + size].tolist())), 2)
        position += size
        return value

    num_values = read(32)
    if num_values != height * width * _CHANNELS:
        raise ValueError(f"has an rle of {num_values} values; allowed are 4 for each of {height} x {width} pixels")
    value_bits = read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    weights = 1 << np.arange(value_bits - 1, -1, -1, dtype=np.int64)
    values = np.zeros(num_values, dtype=np.int64)
    at = 0
    while at < num_values:
        is_run = read(1)
        length = read(length_bits[read(2)]) + 1
        end = min(at + length, num_values)
        if is_run:
            values[at:end] = read(value_bits)
        else:
            block = bits[position : position + length * value_bits]
            if len(block) < length * value_bits:
                raise ValueError(f"has an rle of {len(rle)} bytes, which ends too early")
            values[at:end] = (block.reshape(length, value_bits) @ weights)[: end - at]
            position += length * value_bits
        at = end
    return values.reshape(height, width, _CHANNELS)[:, :, -1] != 0


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask [H, W] as bytes, 0 to 255 each: 255 in all four channels inside, 0 outside."""
    flat = mask.ravel() != 0
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]))
    blocks = [f"{len(flat) * _CHANNELS:032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    most = 1 << _LENGTH_BITS[-1]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist()):
        value = "1" * _VALUE_BITS if flat[start] else "0" * _VALUE_BITS
        length = (end - start) * _CHANNELS
        while length:
            part = min(length, most)
            index = next(index for index, size in enumerate(_LENGTH_BITS) if part <= 1 << size)
            blocks.append(f"1{index:02b}{part - 1:0{_LENGTH_BITS[index]}b}{value}")
            length -= part
    bits = np.frombuffer("".join(blocks).encode(), dtype=np.uint8) - ord("0")
    return np.packbits(bits).tolist()
