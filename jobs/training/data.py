"""The stream of samples that one training worker consumes, prepared ahead in processes of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from model.training.train_step import MicroBatch
from pipeline.dataset.loader import Sample, SampleSet, sample_at
from pipeline.dataset.photos import EXIF_KEPT

# What the network is given of a target; the rest is for us.
_NETWORK_TARGETS = ("boxes", "labels", "masks", "keypoints", "ignore_boxes", "labelled_classes")


@dataclass(frozen=True)
class StepBatches:
    """What one worker trains on in one step.

    Attributes:
        micro_batches: One for each forward pass.
        broken: Photos that could not be used and had another take their place: image id -> reason.
        unturned: Ids of photos whose EXIF turn was not applied, since their annotations fit the unturned photo only.
        wait_s: How long the loop stood waiting for them.
    """

    micro_batches: tuple[MicroBatch, ...]
    broken: dict[str, str]
    unturned: frozenset[str]
    wait_s: float


class BatchStream:
    """Iterates over the steps of one worker, from any place in the stream of samples. A context manager.

    A step takes the next batch_size * accumulate_steps * world_size samples of the stream and deals them to the workers
    in turn, so that a step's samples do not depend on how many workers there are.

    Args:
        samples: The training set with its random changes.
        batch_size: Images of a forward pass on this worker.
        accumulate_steps: Forward passes of a step.
        seed: Of the order.
        num_seen: Samples of the stream that are behind us, over all workers.
        num_steps: Steps to give.
        group_size: Make runs of this many images of one orientation; 0 does not.
        num_processes: Processes that prepare samples; 0 prepares them in the loop, while training waits.
        prefetch_batches: Steps that are prepared ahead.
        pin_memory: Put batches into page-locked memory, for faster copies to a GPU.
    """

    def __init__(
        self,
        samples: SampleSet,
        *,
        batch_size: int,
        accumulate_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_seen: int = 0,
        num_steps: int,
        group_size: int = 0,
        num_processes: int = 1,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
    ) -> None:
        self.batch_size = batch_size
        sizes = [(image.height, image.width) for image in samples.annotated.images]
        self.order = _Order(
            SampleOrder(sizes, seed=seed, group_size=group_size),
            batch_size=batch_size * accumulate_steps,
            rank=rank,
            world_size=world_size,
            num_seen=num_seen,
            num_steps=num_steps,
        )
        self._loader = DataLoader(
            _Samples(samples),
            batch_sampler=self.order,
            num_workers=num_processes,
            collate_fn=_Prepared,
            pin_memory=pin_memory,
            prefetch_factor=max(1, -(-prefetch_batches // num_processes)) if num_processes else None,
            # The annotations of a large set are shared with the children, not sent to each of them.
            multiprocessing_context="fork" if num_processes else None,
        )
        self._batches: Iterator | None = None

    def __enter__(self) -> BatchStream:
        self._batches = iter(self._loader)
        return self

    def __exit__(self, *error: object) -> None:
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._batches = None

    def __iter__(self) -> Iterator[StepBatches]:
        if self._batches is None:
            raise ValueError("a BatchStream is iterated inside its 'with' block")
        for _ in range(len(self.order)):
            started = time.perf_counter()
            prepared = next(self._batches)
            yield prepared.to_step(self.batch_size, time.perf_counter() - started)


class _Samples(Dataset):
    """The set's samples with their names and faults, less what the network has no use for."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample = self.samples.load_sample(*key)
        # Each tensor costs a file descriptor on its way from the process that made it.
        target = {name: sample.target[name] for name in _NETWORK_TARGETS if name in sample.target}
        return dataclasses.replace(sample, target=target)


class _Prepared:
    """The samples of one step, as they come from the loader."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def pin_memory(self) -> _Prepared:
        """Called by the loader, in a thread of its own."""
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
        """Cut into forward passes."""
        micro_batches = []
        for first in range(0, len(self.samples), batch_size):
            part = self.samples[first : first + batch_size]
            micro_batches.append(
                MicroBatch(
                    images=[sample.image for sample in part],
                    targets=[sample.target for sample in part],
                    image_ids=tuple(str(sample.image_id) for sample in part),
                    sample_seeds=tuple(sample.index for sample in part),
                )
            )
        broken = {str(name): why for sample in self.samples for name, why in sample.skipped.items()}
        unturned = frozenset(str(sample.image_id) for sample in self.samples if sample.exif == EXIF_KEPT)
        return StepBatches(tuple(micro_batches), broken, unturned, wait_s)


class SampleOrder:
    """The endless stream of samples: each epoch a new permutation of all, a pure function of its arguments.

    With a group_size of G, places 0 .. G - 1 of the stream, G .. 2 G - 1 and so on hold images of one orientation each
    (upright, or lying and square), as long as an epoch has G of them left; what is left over at its end is mixed.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], *, seed: int, group_size: int = 0) -> None:
        """Sizes are the (height, width) of all images, in order."""
        self.is_upright = np.array([height > width for height, width in sizes])
        self.seed = seed
        self.group_size = 0 if len(set(self.is_upright.tolist())) < 2 else group_size
        self._epoch = (-1, np.zeros(0, np.int64))

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index) at a place of the stream."""
        epoch, place = divmod(position, len(self.is_upright))
        if not self.group_size:
            return sample_at(position, num_samples=len(self.is_upright), seed=self.seed)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._grouped(epoch))
        return epoch, int(self._epoch[1][place])

    def _grouped(self, epoch: int) -> np.ndarray:
        num = len(self.is_upright)
        mixed = [sample_at(epoch * num + place, num_samples=num, seed=self.seed)[1] for place in range(num)]
        # The first places finish the group that the epoch before began.
        head = min(-(epoch * num) % self.group_size, num)
        order = mixed[:head]
        waiting: dict[bool, list[int]] = {False: [], True: []}
        for index in mixed[head:]:
            group = waiting[bool(self.is_upright[index])]
            group.append(index)
            if len(group) == self.group_size:
                order += group
                group.clear()
        return np.array(order + waiting[False] + waiting[True])


class _Order(Sampler):
    """The samples of each step of one worker, as lists of (epoch, index); may be iterated any number of times."""

    def __init__(
        self, order: SampleOrder, *, batch_size: int, rank: int, world_size: int, num_seen: int, num_steps: int
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_seen = num_seen
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.batch_size * self.world_size
        for step in range(self.num_steps):
            first = self.num_seen + step * size
            yield [self.order[position] for position in range(first + self.rank, first + size, self.world_size)]
