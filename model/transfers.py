"""Transfers between host and device: numbers to it without waiting, and the results of a batch back in one wait.

Whatever the host reads of a GPU makes it wait until the GPU has done all that was asked of it, and while the host then
prepares the next work, the GPU has none. So a prediction reads in few places, all of them calls of `to_host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A number, or sequences of numbers, as a tensor on the device; to a GPU from pinned memory, without waiting.

    Args:
        values: As `torch.tensor` takes them.
        device: Where the tensor is wanted.
        dtype: None is what `torch.tensor` makes of the values.
    """
    return upload(torch.tensor(values, dtype=dtype), device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from the host to a GPU by way of pinned memory, without waiting."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors, at least one, in the host's memory: those of one GPU by a single wait, those of the host as is."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def true_columns(table: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """For each row of a table, the indices of the columns in which it is true, ascending; without waiting.

    Args:
        table: bool [R, N].
        counts: How many there are in each row, as `to_host` gave it.

    Returns:
        R tensors, int64 [counts[r]].
    """
    return list(torch.nonzero_static(table, size=sum(counts))[:, 1].split(list(counts)))


def row_of_each(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 counts[0] times, then 1 counts[1] times, and so on: int64 [sum of counts], without waiting."""
    repeats = to_device(counts, device, torch.int64)
    return torch.arange(len(counts), device=device).repeat_interleave(repeats, output_size=sum(counts))
