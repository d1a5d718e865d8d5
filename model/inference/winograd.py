"""3x3 convolutions of float32 maps on a CPU, as matrix products with a quarter of the multiplications.

Winograd's form F(4x4, 3x3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4): 4 x 4
pixels of what is made come from 6 x 6 pixels of what is given, by 36 multiplications for a pair of channels where the
sum as it stands has 144. The transforms are matrix products too, and BLAS does all of them; channels lie last in
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
# Where the polynomials are evaluated, besides infinity: a quarter of the largest error of 0, 1, -1, 2, -2.
_POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))
# What the patches of tiles that are computed together take; there is as much again of their products.
_PIECE_BYTES = 16 * 2**20
# From this size on each map of a batch is computed by itself, and its values do not depend on the others.
LARGE_MAP_PX = 512


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of a flattened patch [36, 36], a flattened kernel [36, 9] and back to a flattened tile [16, 36].

    After Toom and Cook: a polynomial of degree 5 is told by its values at five points and its leading coefficient.
    """
    powers = np.vander(_POINTS, _TILE, increasing=True)
    leading = np.zeros((1, _TILE))
    leading[0, -1] = 1
    others = [[one for one in _POINTS if one != point] for point in _POINTS]
    scales = np.array([[np.prod(np.subtract(point, rest))] for point, rest in zip(_POINTS, others)])
    of_patch = np.array([[*np.poly(rest)[::-1], 0.0] for rest in others] + [np.poly(_POINTS)[::-1]])
    of_kernel = np.concatenate([powers[:, :3] / scales, leading[:, 1:]])
    to_tile = np.concatenate([powers, leading]).T
    patch, kernel, tile = (torch.from_numpy(np.kron(one, one)).float() for one in (of_patch, of_kernel, to_tile))
    return patch, kernel, tile


_OF_PATCH, _OF_KERNEL, _TO_TILE = _transforms()


def conv3x3(maps: Tensor, weight: Tensor, bias: Tensor | None, *, in_place: bool = False) -> Tensor:
    """What `torch.nn.functional.conv2d` gives with a padding of 1; values move by about 1e-5 of their spread.

    Args:
        maps: float32 [N, C, H, W]; these and the weights without a copy where channels lie last in memory.
        weight: float32 [D, C, 3, 3].
        bias: float32 [D], or None.
        in_place: The result takes the maps' memory, channels last as it is, where D is C.

    Returns:
        [N, D, H, W], channels last in memory; N = 0 gives [0, D, H, W].
    """
    count, channels, height, width = maps.shape
    pixels = maps.permute(0, 2, 3, 1)
    kernel = torch.matmul(_OF_KERNEL, weight.permute(0, 2, 3, 1).flatten(1, 2)).permute(1, 2, 0)
    across, down = math.ceil(width / _TILE), math.ceil(height / _TILE)
    found = pixels if in_place else maps.new_empty(count, height, width, len(weight))
    # Tiles that are computed together: rows of one map, or whole maps.
    patch_values = _PATCH**2 * max(channels, len(weight))
    tiles_at_once = _PIECE_BYTES // (patch_values * maps.element_size())
    rows = max(1, min(tiles_at_once // across, down))
    is_large = height * width >= LARGE_MAP_PX
    maps_at_once = 1 if is_large else max(1, min(tiles_at_once // (across * down), count))
    num_values = maps_at_once * rows * across * patch_values
    one, other = maps.new_empty(num_values), maps.new_empty(num_values)
    starts = product(range(0, count, maps_at_once), range(0, down * _TILE, rows * _TILE))
    pieces = (
        (
            _padded(pixels[first : first + maps_at_once], top, min(rows, down - top // _TILE) * _TILE, across * _TILE),
            found[first : first + maps_at_once, top : top + rows * _TILE],
        )
        for first, top in starts
    )
    # In pairs, because a piece is read with a row of the piece before it, which may be overwritten by then.
    for (strip, out), _ in pairwise(chain(pieces, [()])):
        _convolve(strip, kernel, bias, out, one, other)
    return found.permute(0, 3, 1, 2)


def _padded(pixels: Tensor, top: int, height: int, width: int) -> Tensor:
    """What `height` rows of `width` pixels from row `top` on are made from: [N, height + 2, width + 2, C]."""
    first, last = max(top - 1, 0), min(top + height + 1, pixels.shape[1])
    right = width + 1 - pixels.shape[2]
    return F.pad(pixels[:, first:last], (0, 0, 1, right, first - top + 1, top + height + 1 - last))


def _convolve(pixels: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor, one: Tensor, other: Tensor) -> None:
    """From [n, 4 r + 2, 4 t + 2, C] and [36, C, D] what `out` has of [n, 4 r, 4 t, D]; between them in two buffers."""
    patches = pixels.unfold(1, _PATCH, _TILE).unfold(2, _PATCH, _TILE).permute(4, 5, 0, 1, 2, 3)
    tiles = patches.shape[2:5]
    count, (channels, filters) = math.prod(tiles), kernel.shape[1:]

    def view(buffer: Tensor, *shape: int) -> Tensor:
        return buffer[: math.prod(shape)].view(shape)

    given = view(one, *patches.shape).copy_(patches).view(_PATCH**2, -1)
    seen = torch.mm(_OF_PATCH, given, out=view(other, _PATCH**2, count * channels)).view(_PATCH**2, count, channels)
    multiplied = torch.bmm(seen, kernel, out=view(one, _PATCH**2, count, filters)).view(_PATCH**2, -1)
    made = torch.mm(_TO_TILE, multiplied, out=view(other, _TILE**2, count * filters)).view(_TILE**2, *tiles, filters)
    for place, values in enumerate(made):
        target = out[:, place // _TILE :: _TILE, place % _TILE :: _TILE]
        values = values[:, : target.shape[1], : target.shape[2]]
        torch.add(values, 0.0 if bias is None else bias, out=target)
