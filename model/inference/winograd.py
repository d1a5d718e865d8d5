"""Winograd convolution: 3x3 kernels on float32 maps on a CPU with a quarter of the multiplications, by BLAS.

The form is F(4x4, 3x3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4): an output
tile of 4 x 4 pixels is computed from an input patch of 6 x 6 pixels by 36 multiplications for a pair of channels, where
the direct sum has 144. The transforms are matrix products too, and BLAS does all of them. Maps are channels last in
memory, so that whole rows of channels are read and written.
"""

from __future__ import annotations

import math
from itertools import chain, pairwise, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4
_PATCH = _TILE + 2
# Where the polynomials are evaluated, besides infinity. The largest error is a quarter of that of 0, 1, -1, 2, -2.
_POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))
# Memory for the patches of tiles that are computed together; their products take as much again.
_PIECE_BYTES = 16 * 2**20
# Maps with this many pixels or more are computed one by one, so that values do not depend on the rest of the batch.
LARGE_MAP_PX = 512


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of a flattened patch [36, 36] and a flattened kernel [36, 9], and back to a flattened tile [16, 36].

    Toom-Cook: a polynomial of degree 5 is determined by its values at five points and its leading coefficient.
    """
    powers = np.vander(_POINTS, _TILE, increasing=True)
    leading = np.zeros((1, _TILE))
    leading[0, -1] = 1
    other_points = [[other for other in _POINTS if other != point] for point in _POINTS]
    scales = np.array([[np.prod(np.subtract(point, rest))] for point, rest in zip(_POINTS, other_points)])
    of_patch = np.array([[*np.poly(rest)[::-1], 0.0] for rest in other_points] + [np.poly(_POINTS)[::-1]])
    of_kernel = np.concatenate([powers[:, :3] / scales, leading[:, 1:]])
    to_tile = np.concatenate([powers, leading]).T
    patch, kernel, tile = (torch.from_numpy(np.kron(m, m)).float() for m in (of_patch, of_kernel, to_tile))
    return patch, kernel, tile


_OF_PATCH, _OF_KERNEL, _TO_TILE = _transforms()


def conv3x3(maps: Tensor, weight: Tensor, bias: Tensor | None, *, in_place: bool = False) -> Tensor:
    """`torch.nn.functional.conv2d` with a padding of 1, up to a difference of about 1e-5 of the values' spread.

    Args:
        maps: float32 [N, C, H, W]; maps and weights are not copied where they are channels last in memory.
        weight: float32 [D, C, 3, 3].
        bias: float32 [D], or None.
        in_place: The result overwrites the maps' memory; they must be channels last, and D = C.

    Returns:
        [N, D, H, W], channels last in memory; N = 0 gives [0, D, H, W].
    """
    count, channels, height, width = maps.shape
    pixels = maps.permute(0, 2, 3, 1)
    kernel = torch.matmul(_OF_KERNEL, weight.permute(0, 2, 3, 1).flatten(1, 2)).permute(1, 2, 0)
    across, down = math.ceil(width / _TILE), math.ceil(height / _TILE)
    result = pixels if in_place else maps.new_empty(count, height, width, len(weight))
    # Tiles that are computed together: rows of one map, or whole maps.
    patch_values = _PATCH**2 * max(channels, len(weight))
    tiles_at_once = _PIECE_BYTES // (patch_values * maps.element_size())
    rows = max(1, min(tiles_at_once // across, down))
    is_large = height * width >= LARGE_MAP_PX
    maps_at_once = 1 if is_large else max(1, min(tiles_at_once // (across * down), count))
    num_values = maps_at_once * rows * across * patch_values
    buffers = maps.new_empty(num_values), maps.new_empty(num_values)
    starts = product(range(0, count, maps_at_once), range(0, down * _TILE, rows * _TILE))
    pieces = (
        (
            _padded(pixels[first : first + maps_at_once], top, min(rows, down - top // _TILE) * _TILE, across * _TILE),
            result[first : first + maps_at_once, top : top + rows * _TILE],
        )
        for first, top in starts
    )
    # A piece's input includes the last row of the piece before, which `in_place` overwrites. `pairwise` therefore takes
    # the input of the next piece before this one is computed.
    for (strip, out), _ in pairwise(chain(pieces, [()])):
        _convolve(strip, kernel, bias, out, buffers)
    return result.permute(0, 3, 1, 2)


def _padded(pixels: Tensor, top: int, height: int, width: int) -> Tensor:
    """Input of `height` output rows of `width` pixels from row `top` on, zero-padded: [N, height + 2, width + 2, C]."""
    first, last = max(top - 1, 0), min(top + height + 1, pixels.shape[1])
    right = width + 1 - pixels.shape[2]
    return F.pad(pixels[:, first:last], (0, 0, 1, right, first - top + 1, top + height + 1 - last))


def _convolve(pixels: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor, buffers: tuple[Tensor, Tensor]) -> None:
    """Convolve padded pixels [n, 4 r + 2, 4 t + 2, C] with a transformed kernel [36, C, D].

    The result is [n, 4 r, 4 t, D], of which `out` gets the part that it has room for. The buffers hold the
    intermediate values.
    """
    patches = pixels.unfold(1, _PATCH, _TILE).unfold(2, _PATCH, _TILE).permute(4, 5, 0, 1, 2, 3)
    tiles = patches.shape[2:5]
    count, (channels, filters) = math.prod(tiles), kernel.shape[1:]

    def view(buffer: Tensor, *shape: int) -> Tensor:
        return buffer[: math.prod(shape)].view(shape)

    first, second = buffers
    inputs = view(first, *patches.shape).copy_(patches).view(_PATCH**2, -1)
    transformed = torch.mm(_OF_PATCH, inputs, out=view(second, _PATCH**2, count * channels))
    transformed = transformed.view(_PATCH**2, count, channels)
    products = torch.bmm(transformed, kernel, out=view(first, _PATCH**2, count, filters)).view(_PATCH**2, -1)
    outputs = torch.mm(_TO_TILE, products, out=view(second, _TILE**2, count * filters))
    for index, values in enumerate(outputs.view(_TILE**2, *tiles, filters)):
        target = out[:, index // _TILE :: _TILE, index % _TILE :: _TILE]
        values = values[:, : target.shape[1], : target.shape[2]]
        torch.add(values, 0.0 if bias is None else bias, out=target)
