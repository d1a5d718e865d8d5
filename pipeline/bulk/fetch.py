"""From a planned image to its pixels: read the bytes, check that they are the planned ones, hand them to a decoder.

Reading waits for the disk or the network, decoding runs in child processes, so both go on ahead of the predictor in
a handful of threads; at most `lookahead` images are held at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

from pipeline.bulk.corpus import PlannedImage
from pipeline.bulk.decode import Decoded, DecodeLimits, DecodePool
from pipeline.storage import Storage, StorageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def load_image(storage: Storage, pool: DecodePool, limits: DecodeLimits, image: PlannedImage) -> Decoded:
    """Reads and decodes one image. Never raises for what an image can be: the result's status says what was wrong."""
    data = fetch_bytes(storage, limits, image)
    return data if isinstance(data, Decoded) else pool.submit(data).result()


def fetch_bytes(storage: Storage, limits: DecodeLimits, image: PlannedImage) -> bytes | Decoded:
    """The bytes of an image as they were planned, or the failure that its row will show."""
    if image.size_bytes is not None and image.size_bytes > limits.max_bytes:
        return _failure("too_large", f"{image.size_bytes} bytes; the limit is {limits.max_bytes}")
    try:
        if image.etag is not None:
            now = storage.stat(image.image_id)
            if (now.etag, now.size_bytes) != (image.etag, image.size_bytes):
                return _failure("changed", f"{now.size_bytes} bytes now, {image.size_bytes} when planned")
        data = storage.read_bytes(image.image_id)
    except FileNotFoundError:
        return _failure("not_found", "gone since it was planned" if image.etag else "the listed name leads nowhere")
    except (OSError, StorageError) as error:
        return _failure("unreadable", str(error))
    if image.size_bytes is not None and len(data) != image.size_bytes:
        return _failure("changed", f"{len(data)} bytes read, {image.size_bytes} when planned")
    return data


def map_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], lookahead: int
) -> Iterator[Result]:
    """`map(function, items)` in order, with up to `lookahead` calls running or waiting to be taken."""
    iterator = iter(items)
    pending: deque[Future[Result]] = deque(executor.submit(function, item) for item in islice(iterator, lookahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(executor.submit(function, item) for item in islice(iterator, 1))
        yield result


def _failure(status: str, error: str) -> Decoded:
    return Decoded(status=status, error=error, image=None, height=None, width=None, exif_orientation=None)
