"""3x3 convolutions in Winograd's form against the sum as it stands."""

import pytest
import torch
from torch.nn.functional import conv2d

from model.inference import winograd
from model.inference.winograd import conv3x3

# Ten times what the float32 sum itself is off, and less than half of what polynomials at 0, 1, -1, 2, -2 give.
CLOSE = {"rtol": 0, "atol": 2e-5}


def drawn(*shape, filters=24):
    """Maps, weights and biases; what comes of them has a deviation of about 1."""
    torch.manual_seed(0)
    weight = torch.randn(filters, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    return torch.randn(shape), weight, torch.randn(filters)


@pytest.mark.parametrize(
    "shape",
    [(1, 16, 4, 4), (1, 16, 1, 1), (2, 16, 1, 37), (2, 8, 40, 3), (3, 40, 23, 31), (5, 256, 14, 14), (1, 512, 25, 34)],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_convolution(shape, memory_format):
    maps, weight, bias = drawn(*shape)
    maps, weight = maps.to(memory_format=memory_format), weight.to(memory_format=memory_format)
    for some_bias in (bias, None):
        want = conv2d(maps.double(), weight.double(), None if some_bias is None else some_bias.double(), padding=1)
        found = conv3x3(maps, weight, some_bias)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, want.float(), **CLOSE)


def test_whole_numbers_far_apart_stay_apart():
    """One pixel of 1,000 among zeros reaches its neighbours alone, but for rounding."""
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1000
    found = conv3x3(maps, torch.ones(1, 1, 3, 3), None)[0, 0]
    want = torch.zeros(9, 9)
    want[3:6, 3:6] = 1000
    torch.testing.assert_close(found, want, rtol=0, atol=1e-3)


def test_no_maps_give_none():
    maps, weight, bias = drawn(0, 16, 28, 28)
    assert conv3x3(maps, weight, bias).shape == (0, 24, 28, 28)


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
@pytest.mark.parametrize("shape", [(2, 32, 45, 50), (20, 32, 14, 14)])
def test_pieces_have_the_values_of_the_whole(shape, rows, monkeypatch):
    """Rows of tiles of a large map, a few small maps: bit for bit."""
    maps, weight, bias = drawn(*shape)
    whole = conv3x3(maps, weight, bias)
    tiles_across = -(-shape[3] // 4)
    monkeypatch.setattr(winograd, "_PIECE_BYTES", rows * tiles_across * 36 * 32 * 4)
    assert torch.equal(conv3x3(maps, weight, bias), whole)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("shape", [(2, 32, 45, 50), (20, 32, 14, 14)])
def test_the_result_may_take_the_maps_memory(shape, rows, monkeypatch):
    maps, weight, bias = drawn(*shape, filters=32)
    maps = maps.to(memory_format=torch.channels_last)
    monkeypatch.setattr(winograd, "_PIECE_BYTES", rows * -(-shape[3] // 4) * 36 * 32 * 4)
    want = conv3x3(maps, weight, bias)
    found = conv3x3(maps, weight, bias, in_place=True)
    assert torch.equal(found, want)
    assert found.data_ptr() == maps.data_ptr()


def test_a_large_map_of_a_batch_is_computed_by_itself():
    maps, weight, bias = drawn(3, 64, 23, 31)
    found = conv3x3(maps, weight, bias)
    for index in range(3):
        assert torch.equal(conv3x3(maps[index : index + 1], weight, bias)[0], found[index])
