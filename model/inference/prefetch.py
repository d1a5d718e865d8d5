"""Prefetch of image batches to the GPU: uploads the next batch while the network computes the current one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from model.transfers import upload

Image = np.ndarray | Tensor  # [H, W, C]


def to_tensor(image: Image) -> Tensor:
    """An image as a tensor that shares its memory; copied if that is read-only or not C-contiguous."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements=["C", "W"]))


def upload_ahead(batches: Iterable[Sequence[np.ndarray]], device: torch.device) -> Iterator[Sequence[Image]]:
    """The batches on the device, one after another; dtypes and shapes are kept.

    To a GPU, images are copied from pinned memory on a separate stream, one batch ahead: while the network computes a
    batch, the next one is uploaded. At most two batches are on the device.

    Args:
        batches: Arrays of any shapes, none empty; read one batch ahead of the one yielded.
        device: The network's device. On a CPU batches are yielded unchanged, and so is one that does not fit in the
            memory of a GPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[list[Tensor], torch.cuda.Event] | None = None
    for batch in batches:
        images = [to_tensor(image) for image in batch]
        with torch.cuda.stream(stream), suppress(torch.OutOfMemoryError):
            images = [upload(image, device) for image in images]
        current = images, stream.record_event()
        if ahead is not None:
            yield _wait_for_upload(*ahead)
        ahead = current
    if ahead is not None:
        yield _wait_for_upload(*ahead)


def _wait_for_upload(images: list[Tensor], uploaded: torch.cuda.Event) -> list[Tensor]:
    """The images, after telling the current stream to wait for the copy, and the allocator that it reads them."""
    for image in images:
        if image.is_cuda:
            stream = torch.cuda.current_stream(image.device)
            stream.wait_event(uploaded)
            image.record_stream(stream)
    return images
