"""Batches of one training worker: its samples of each step, in a seeded order, prepared ahead in child processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader

from model.training.train_step import ALONE, MicroBatch, WorkerRank
from pipeline.dataset.loader import Sample, SampleSet, sample_at
from pipeline.dataset.photos import EXIF_KEPT


@dataclass(frozen=True)
class StepBatches:
    """What one worker trains on in one step.

    Attributes:
        micro_batches: The images and targets of each forward pass.
        broken: Images that could not be used and were replaced by others: image id -> reason.
        unturned: Ids of images whose EXIF turn was not applied, since their annotations fit the unturned image only.
        wait_s: Seconds that the loop waited for the batches.
    """

    micro_batches: tuple[MicroBatch, ...]
    broken: dict[str, str]
    unturned: frozenset[str]
    wait_s: float


@dataclass(frozen=True)
class Loading:
    """How samples are prepared; it does not change them.

    Attributes:
        num_processes: Processes that prepare samples; 0 prepares them in the loop, while training waits.
        prefetch_batches: Steps that are prepared ahead.
        pin_memory: Put batches into page-locked memory, for faster copies to a GPU.
    """

    num_processes: int = 1
    prefetch_batches: int = 4
    pin_memory: bool = False


DEFAULT_LOADING = Loading()


class BatchStream:
    """Iterates over the steps of one worker, from any position in the stream of samples. A context manager.

    A step takes the next batch_size * accumulate_steps * world_size samples of the stream and deals them to the workers
    in turn, so the samples of a step depend on their number only, not on how many workers share them.

    Args:
        samples: The training set with its augmentation.
        order: The order of all samples.
        batch_size: Images of one forward pass on this worker.
        accumulate_steps: Forward passes of a step.
        worker: This worker.
        num_seen: Samples of the stream that all workers together have consumed before.
        num_steps: Number of steps to iterate over.
        loading: How samples are prepared.
    """

    def __init__(
        self,
        samples: SampleSet,
        order: SampleOrder,
        *,
        batch_size: int,
        accumulate_steps: int = 1,
        worker: WorkerRank = ALONE,
        num_seen: int = 0,
        num_steps: int,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        self.batch_size = batch_size
        self.order = _Order(order, batch_size * accumulate_steps, worker, num_seen, num_steps)
        num_processes = loading.num_processes
        self._loader = DataLoader(
            samples,
            batch_sampler=self.order,
            num_workers=num_processes,
            collate_fn=_Prepared,
            pin_memory=loading.pin_memory,
            prefetch_factor=max(1, -(-loading.prefetch_batches // num_processes)) if num_processes else None,
            # fork shares the annotations of a large set with the children; other methods would send each a copy.
            multiprocessing_context="fork" if num_processes else None,
        )
        self._batches: Iterator[_Prepared] | None = None

    def __enter__(self) -> BatchStream:
        self._batches = iter(self._loader)
        return self

    def __exit__(self, *error: object) -> None:
        self._batches = None  # torch ends the processes of an iterator that nobody holds any more

    def __iter__(self) -> Iterator[StepBatches]:
        if self._batches is None:
            raise ValueError("a BatchStream is iterated inside its 'with' block")
        for _ in range(len(self.order)):
            started = time.perf_counter()
            prepared = next(self._batches)
            yield prepared.to_step(self.batch_size, time.perf_counter() - started)


class _Prepared:
    """The samples of one step, as the DataLoader collates them."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def pin_memory(self) -> _Prepared:
        """A copy in page-locked memory; the DataLoader calls it in a thread of its own."""
        pinned = [
            dataclasses.replace(
                sample,
                image=sample.image.pin_memory(),
                target={name: value.pin_memory() for name, value in sample.target.items()},
            )
            for sample in self.samples
        ]
        return _Prepared(pinned)

    def to_step(self, batch_size: int, wait_s: float) -> StepBatches:
        """Cuts the samples into micro-batches of `batch_size`."""
        micro_batches = []
        for first in range(0, len(self.samples), batch_size):
            samples = self.samples[first : first + batch_size]
            micro_batches.append(
                MicroBatch(
                    images=[sample.image for sample in samples],
                    targets=[sample.target for sample in samples],
                    image_ids=tuple(str(sample.image_id) for sample in samples),
                    sample_seeds=tuple(sample.index for sample in samples),
                )
            )
        broken = {str(image_id): reason for sample in self.samples for image_id, reason in sample.skipped.items()}
        unturned = frozenset(str(sample.image_id) for sample in self.samples if sample.exif == EXIF_KEPT)
        return StepBatches(tuple(micro_batches), broken, unturned, wait_s)


class SampleOrder:
    """The endless order of samples: each epoch is a new permutation of all images, a pure function of the arguments.

    With a group_size of G, positions 0 .. G - 1, G .. 2 G - 1 and so on hold images of one orientation each: all of
    them upright (higher than wide), or none. At the end of an epoch, images that fill no group of G are mixed.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], *, seed: int, group_size: int = 0) -> None:
        """`sizes` are the (height, width) of all images, in the order of the set."""
        self.is_upright = np.array([height > width for height, width in sizes])
        self.seed = seed
        self.group_size = 0 if len(set(self.is_upright.tolist())) < 2 else group_size
        self._epoch = (-1, np.zeros(0, np.int64))

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index of the image) at a position of the stream."""
        epoch, offset = divmod(position, len(self.is_upright))
        if not self.group_size:
            return sample_at(position, num_samples=len(self.is_upright), seed=self.seed)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._grouped(epoch))
        return epoch, int(self._epoch[1][offset])

    def _grouped(self, epoch: int) -> np.ndarray:
        """Indices of the images in the grouped order of an epoch, int64 [number of images]."""
        num = len(self.is_upright)
        shuffled = [sample_at(epoch * num + offset, num_samples=num, seed=self.seed)[1] for offset in range(num)]
        # The first positions complete the group that the epoch before began.
        head = min(-(epoch * num) % self.group_size, num)
        order = shuffled[:head]
        groups: dict[bool, list[int]] = {False: [], True: []}
        for index in shuffled[head:]:
            group = groups[bool(self.is_upright[index])]
            group.append(index)
            if len(group) == self.group_size:
                order += group
                group.clear()
        return np.array(order + groups[False] + groups[True])


@dataclass(frozen=True)
class _Order:
    """The samples of each step of one worker, as lists of (epoch, index); can be iterated repeatedly."""

    order: SampleOrder
    batch_size: int
    worker: WorkerRank
    num_seen: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world_size = self.worker.rank, self.worker.world_size
        size = self.batch_size * world_size
        for step in range(self.num_steps):
            first = self.num_seen + step * size
            yield [self.order[position] for position in range(first + rank, first + size, world_size)]
