"""Images on their way to the device, the next batch while the network is at work on the one before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

Image = np.ndarray | Tensor  # [H, W, C]


def to_tensor(image: Image) -> Tensor:
    """An image as a tensor that shares its memory, unless that is read-only or not in order of rows."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements=["C", "W"]))


def upload_ahead(batches: Iterable[Sequence[np.ndarray]], device: torch.device) -> Iterator[Sequence[Image]]:
    """Each batch's images on the device, in their types and shapes.

    To a GPU they are copied from pinned memory by a stream of its own, one batch ahead: while the network is at work on
    a batch, the next one travels. Two batches are on the device at most.

    Args:
        batches: Arrays of any shapes, none empty; taken one batch ahead of what is yielded.
        device: Where the network is. On a CPU batches stay what they are; so does one that finds no room on a GPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[list[Tensor], torch.cuda.Event] | None = None
    for batch in batches:
        images = [to_tensor(image) for image in batch]
        with torch.cuda.stream(stream), suppress(torch.OutOfMemoryError):
            images = [image.pin_memory().to(device, non_blocking=True) for image in images]
        sending = images, stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = sending
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(images: list[Tensor], sent: torch.cuda.Event) -> list[Tensor]:
    """The images, once whoever computes with them waits for the copy; their memory is theirs until it has computed."""
    for image in images:
        if image.is_cuda:
            reader = torch.cuda.current_stream(image.device)
            reader.wait_event(sent)
            image.record_stream(reader)
    return images
