"""Loading of planned images: reads the bytes, checks that they are the planned ones, has child processes decode them.

Reading waits for the disk or the network, and decoding runs in child processes. So a handful of threads load images
ahead of the predictor, and at most `lookahead` images are held at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.progress import StageClock
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from pipeline.images.pixels import to_unit
from pipeline.manifest import RUN_KEY
from pipeline.run_spec import RunSpec
from pipeline.schema import ARCHIVED
from pipeline.storage.base import CredentialsError, ObjectArchived, Storage, StorageError, StorageSettings
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import aligned_uri, is_local, split_uri

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ImageLoader:
    """Reads and decodes images, all in the same way.

    Attributes:
        pool: decodes the bytes.
        limits: largest file that is read.
        num_bands: channels the network takes; for other than 3 they are float32 as `pipeline.images.pixels.to_unit`
            gives them.
        extra_channels: pattern of the file whose bands are the last channels, see `pipeline.storage.uri.aligned_uri`.
        resize_to: sides that the network resizes an image to, see `pipeline.images.decode_image.decode_image`; a photo
            with extra channels is always decoded at full size.
        settings: for buckets, see `open_storage`.
        guard: ends the run where the store is at fault, not the image.
    """

    pool: DecodePool
    limits: DecodeLimits
    num_bands: int = 3
    extra_channels: str | None = None
    resize_to: tuple[int, int] | None = None
    settings: StorageSettings | None = None
    guard: StoreGuard | None = None

    @classmethod
    def of_run(cls, pool: DecodePool, limits: DecodeLimits, spec: RunSpec, output: Storage) -> ImageLoader:
        """The loader of a run with this output: the channels its network takes, the size it resizes images to."""
        network, source = spec.model.spec, spec.input
        scaled = spec.decode.scaled and spec.segment.slice is None  # slices are cut from the original
        return cls(
            pool=pool,
            limits=limits,
            num_bands=network["in_channels"],
            extra_channels=source.extra_channels,
            resize_to=(network["image_min_size"], network["image_max_size"]) if scaled else None,
            settings=output.settings,
            guard=StoreGuard(output, source.uri if source.kind == "folder" else None),
        )

    def load(self, image: PlannedImage, clock: StageClock | None = None) -> Decoded:
        """Reads and decodes one image; `clock` counts the seconds of reading as 'fetch'.

        A bad image never raises: the result's status says what was wrong.

        Raises:
            CredentialsError, StoreFault: as `fetch_bytes`.
        """
        with (clock or StageClock())("fetch"):
            data = self._fetch(image)
        if isinstance(data, Decoded):
            return data
        if self.extra_channels is None:
            return self.pool.submit(data, num_bands=self.num_bands, resize_to=self.resize_to).result()
        extra_uri = aligned_uri(self.extra_channels, image.uri)
        extra_data = self._fetch(PlannedImage(image.image_id, extra_uri))
        extra = extra_data if isinstance(extra_data, Decoded) else self.pool.submit(extra_data, num_bands=None).result()
        if extra.image is None:
            return replace(extra, error=f"{extra_uri}: {extra.error}")
        num_own = self.num_bands - extra.image.shape[2]
        if num_own < 1:
            bands = f"it has {extra.image.shape[2]} bands; {self.num_bands} are wanted in all"
            return _failure("unsupported_format", f"{extra_uri}: {bands}")
        photo = self.pool.submit(data, num_bands=num_own).result()
        if photo.image is None:
            return photo
        if photo.size != extra.size:
            sizes = f"{extra.height} x {extra.width} px, the photo {photo.height} x {photo.width}"
            return replace(photo, status="corrupt", error=f"{extra_uri}: {sizes}", image=None)
        return replace(photo, image=np.concatenate([to_unit(photo.image), extra.image], axis=2))

    def _fetch(self, image: PlannedImage) -> bytes | Decoded:
        return fetch_bytes(self.limits, image, self.guard, self.settings)


def fetch_bytes(
    limits: DecodeLimits,
    image: PlannedImage,
    guard: StoreGuard | None = None,
    settings: StorageSettings | None = None,
) -> bytes | Decoded:
    """The bytes of an image, or the failure that its row will show: missing, unreadable, too large or changed.

    Raises:
        CredentialsError, StoreFault: the fault is not the image's; see `StoreGuard`.
    """
    if image.size_bytes is not None and image.size_bytes > limits.max_bytes:
        return _failure("too_large", f"{image.size_bytes} bytes; the limit is {limits.max_bytes}")
    try:
        data, etag = read_planned(image, settings)
    except CredentialsError:
        raise
    except ObjectArchived as error:
        return _failure(ARCHIVED, str(error))
    except (OSError, ValueError) as error:
        if guard is not None:
            guard.check(image, error)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return _failure("not_found", "gone since it was planned" if image.etag else "the listed name leads nowhere")
        return _failure("unreadable", str(error))
    if guard is not None:
        guard.note(image)
    if image.size_bytes is not None and len(data) != image.size_bytes:
        return _failure("changed", f"{len(data)} bytes now, {image.size_bytes} when planned")
    if image.etag is not None and etag and etag != image.etag:
        return _failure("changed", f"its etag is {etag} now, {image.etag} when planned")
    if len(data) > limits.max_bytes:
        return _failure("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    return data


def read_planned(image: PlannedImage, settings: StorageSettings | None = None) -> tuple[bytes, str]:
    """An image's bytes (of a tar member its part of the tar file) and the etag of their object, in one request."""
    storage, key = open_file(image.uri, settings)
    if image.offset is None:
        return storage.read_object(key)
    return storage.read_object(key, image.offset, image.size_bytes)


class StoreFault(OSError):
    """A store fails on everything, not on one image: the run cannot go on. The message is for the user."""


class StoreGuard:
    """Tells a fault of a store from a fault of one image: reads again what could be read before.

    Args:
        output: the run, whose run.json was read at its start.
        corpus: the folder that was listed; None where the images come from a list, an inventory or tar files.
    """

    def __init__(self, output: Storage, corpus: str | None) -> None:
        self._output = output
        self._corpus = None if corpus is None else open_storage(corpus, output.settings)
        self._last_read: dict[str, PlannedImage] = {}  # by the root of its store

    def note(self, image: PlannedImage) -> None:
        """Takes an image that was read."""
        self._last_read[split_uri(image.uri)[0]] = image

    def check(self, image: PlannedImage, error: Exception) -> None:
        """Returns when an image alone cannot be read.

        Raises:
            StoreFault: what was read before cannot be read either, or the folder of the corpus is gone.
        """
        try:
            root = split_uri(image.uri)[0]
            if isinstance(error, FileNotFoundError):
                self._check_folder()
            elif not self._something_is_read(root):
                return
        except (OSError, ValueError) as second:
            if isinstance(second, StorageError) and second.args == error.args:
                return  # the URI itself is at fault
            raise StoreFault(f"{error}; and what could be read before cannot be read either: {second}") from error

    def _something_is_read(self, root: str) -> bool:
        """Reads something of a store; returns whether there was anything to read, raises when it cannot be read."""
        if (known := self._last_read.get(root)) is not None:
            with contextlib.suppress(FileNotFoundError):
                storage, key = open_file(known.uri, self._output.settings)
                storage.read_object(key, known.offset or 0, 1)
                return True
        if split_uri(self._output.uri)[0] == root != "/":
            self._output.read_bytes(RUN_KEY)
            return True
        if self._corpus is not None and split_uri(self._corpus.uri)[0] == root != "/":
            next(self._corpus.iter_objects(), None)
            return True
        return False

    def _check_folder(self) -> None:
        """Raises FileNotFoundError when the corpus is a local folder that is gone or, as when unmounted, empty."""
        if self._corpus is not None and is_local(self._corpus.uri) and not any(os.scandir(self._corpus.uri)):
            raise FileNotFoundError(errno.ENOENT, "the folder is empty", self._corpus.uri)


def map_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], lookahead: int
) -> Iterator[Result]:
    """`map(function, items)` in an executor, in order, with up to `lookahead` results running or waiting."""
    iterator = iter(items)
    pending: deque[Future[Result]] = deque(executor.submit(function, item) for item in islice(iterator, lookahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(executor.submit(function, item) for item in islice(iterator, 1))
        yield result


def _failure(status: str, error: str) -> Decoded:
    return Decoded(status=status, error=error, image=None, height=None, width=None, exif_orientation=None)
