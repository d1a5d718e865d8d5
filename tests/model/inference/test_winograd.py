"""Winograd convolutions of 3x3 kernels against torch's direct convolution."""

from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from model.inference import winograd
from model.inference.winograd import conv3x3

# Ten times the error of the float32 sum itself, and less than half of the error with points at 0, 1, -1, 2, -2.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}


def random_inputs(*shape, filters=24):
    """Maps, weights and biases for which the output has a standard deviation of about 1."""
    torch.manual_seed(0)
    weight = torch.randn(filters, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    return torch.randn(shape), weight, torch.randn(filters)


@pytest.mark.parametrize(
    "shape",
    [(1, 16, 4, 4), (1, 16, 1, 1), (2, 16, 1, 37), (2, 8, 40, 3), (3, 40, 23, 31), (5, 256, 14, 14), (1, 512, 25, 34)],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_convolution(shape, memory_format):
    maps, weight, bias = random_inputs(*shape)
    maps, weight = maps.to(memory_format=memory_format), weight.to(memory_format=memory_format)
    for used_bias in (bias, None):
        expected = conv2d(maps.double(), weight.double(), None if used_bias is None else used_bias.double(), padding=1)
        output = conv3x3(maps, weight, used_bias)
        assert output.dtype == torch.float32
        assert output.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(output, expected.float(), **CLOSE)


def test_a_large_pixel_changes_its_neighbours_only():
    """One pixel of 1,000 among zeros: all outputs beyond its 3 x 3 neighbours are 0, but for rounding."""
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1000
    output = conv3x3(maps, torch.ones(1, 1, 3, 3), None)[0, 0]
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 1000
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-3)


def test_no_maps_give_an_empty_result():
    maps, weight, bias = random_inputs(0, 16, 28, 28)
    assert conv3x3(maps, weight, bias).shape == (0, 24, 28, 28)


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
@pytest.mark.parametrize("shape", [(2, 32, 45, 50), (20, 32, 14, 14)])
def test_the_size_of_the_pieces_does_not_change_a_bit(shape, rows, monkeypatch):
    """Pieces are rows of tiles of a large map, or several small maps."""
    maps, weight, bias = random_inputs(*shape)
    whole = conv3x3(maps, weight, bias)
    tiles_across = -(-shape[3] // 4)
    monkeypatch.setattr(winograd, "_PIECE_BYTES", rows * tiles_across * 36 * 32 * 4)
    assert torch.equal(conv3x3(maps, weight, bias), whole)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("shape", [(2, 32, 45, 50), (20, 32, 14, 14)])
def test_in_place_overwrites_the_maps_with_the_same_result(shape, rows, monkeypatch):
    maps, weight, bias = random_inputs(*shape, filters=32)
    maps = maps.to(memory_format=torch.channels_last)
    monkeypatch.setattr(winograd, "_PIECE_BYTES", rows * -(-shape[3] // 4) * 36 * 32 * 4)
    expected = conv3x3(maps, weight, bias)
    output = conv3x3(maps, weight, bias, in_place=True)
    assert torch.equal(output, expected)
    assert output.data_ptr() == maps.data_ptr()


def test_a_large_map_of_a_batch_is_computed_by_itself():
    maps, weight, bias = random_inputs(3, 64, 23, 31)
    output = conv3x3(maps, weight, bias)
    for index in range(3):
        assert torch.equal(conv3x3(maps[index : index + 1], weight, bias)[0], output[index])
