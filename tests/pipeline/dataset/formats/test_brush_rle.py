"""Label Studio's brushes: bit by bit as its format says, and there and back."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dataset.formats.brush_rle import decode_brush, encode_brush


def to_bytes(*fields: tuple[int, int]) -> list[int]:
    """Numbers of so many bits each, one behind the other, filled up to a byte."""
    bits = "".join(f"{value:0{size}b}" for value, size in fields)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def read_plainly(rle: list[int]) -> list[int]:
    """The values, one bit after the other: the format's definition, slowly."""
    bits = iter("".join(f"{byte:08b}" for byte in rle))

    def number(size: int) -> int:
        return int("".join(next(bits) for _ in range(size)), 2)

    count, size = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run = number(1)
        length = number(lengths[number(2)]) + 1
        values += [number(size)] * length if is_run else [number(size) for _ in range(length)]
    return values


HEADER = [(8, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]  # 8 values of 8 bits; lengths of 3, 4, 8, 16 bits


def test_runs_and_single_values_of_two_pixels() -> None:
    run = to_bytes(*HEADER, (1, 1), (0, 2), (3, 3), (0, 8), (1, 1), (1, 2), (3, 4), (255, 8))
    assert decode_brush(run, 1, 2).tolist() == [[False, True]]
    single = to_bytes(*HEADER, (0, 1), (2, 2), (7, 8), *((value, 8) for value in (9, 9, 9, 1, 200, 200, 200, 0)))
    assert decode_brush(single, 1, 2).tolist() == [[True, False]]  # alpha alone counts


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (40, 50), (200, 300)])
def test_masks_come_back_and_are_read_by_the_definition(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    blob = np.zeros(shape, bool)
    blob[shape[0] // 3 :, : shape[1] // 2 + 1] = True
    for mask in (blob, ~blob, np.zeros(shape, bool), np.ones(shape, bool), rng.random(shape) < 0.5):
        rle = encode_brush(mask)
        assert all(0 <= byte <= 255 for byte in rle) and np.array_equal(decode_brush(rle, *shape), mask)
        if mask.size < 3000:
            assert read_plainly(rle) == (np.repeat(mask.ravel(), 4) * 255).tolist()


def test_what_is_no_brush_of_this_size_is_refused() -> None:
    rle = encode_brush(np.eye(5, dtype=bool))
    with pytest.raises(ValueError, match="has an rle of 100 values; allowed are 4 for each of 6 x 5 pixels"):
        decode_brush(rle, 6, 5)
    for end in range(len(rle) - 1):
        with pytest.raises(ValueError, match="which ends too early"):
            decode_brush(rle[:end], 5, 5)
    single = to_bytes(*HEADER, (0, 1), (2, 2), (7, 8), (9, 8))
    with pytest.raises(ValueError, match="which ends too early"):
        decode_brush(single, 1, 2)
