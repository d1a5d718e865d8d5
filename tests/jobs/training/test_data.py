"""The stream of samples: every epoch whole, groups of one orientation, and shares of workers that make up a step."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.training.data import BatchStream, Loading, SampleOrder, StepBatches
from model.training.train_step import WorkerRank
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.shapes import draw_shapes
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.dataset.transforms.settings import Augmentation

SIZES = [(20, 30), (30, 20), (20, 20), (40, 20)] * 5 + [(30, 20)] * 3  # 23 images, 13 of them upright


@pytest.mark.parametrize("group_size", [0, 2, 4, 50])
def test_every_epoch_has_every_sample_once(group_size: int):
    order = SampleOrder(SIZES, seed=3, group_size=group_size)
    stream = [order[position] for position in range(4 * len(SIZES))]
    for epoch in range(4):
        part = stream[epoch * len(SIZES) : (epoch + 1) * len(SIZES)]
        assert {sample_epoch for sample_epoch, _ in part} == {epoch} and sorted(index for _, index in part) == list(
            range(len(SIZES))
        )
    assert [order[position] for position in (70, 3, 25)] == [stream[position] for position in (70, 3, 25)]
    assert [index for _, index in stream[:23]] != [index for _, index in stream[23:46]]


def test_groups_are_of_one_orientation_across_epochs():
    order = SampleOrder(SIZES, seed=0, group_size=4)
    mixed = 0
    for first in range(0, 40 * len(SIZES), 4):
        upright = {SIZES[order[position][1]][0] > SIZES[order[position][1]][1] for position in range(first, first + 4)}
        mixed += len(upright) > 1
    ungrouped = SampleOrder(SIZES, seed=0)
    by_chance = sum(
        len(
            {
                SIZES[ungrouped[position][1]][0] > SIZES[ungrouped[position][1]][1]
                for position in range(first, first + 4)
            }
        )
        > 1
        for first in range(0, 40 * len(SIZES), 4)
    )
    # Only the one or two groups that an epoch's end leaves over may be mixed; by chance nearly all are.
    assert mixed <= 2 * 40 and by_chance > 2.5 * mixed


@pytest.fixture(scope="module")
def small_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=9, num_val=1, num_unlabelled=0, image_size=(40, 48), max_shapes=2)
    return folder


def order_of(samples: SampleSet) -> SampleOrder:
    return SampleOrder([(image.height, image.width) for image in samples.annotated.images], seed=1)


def read(small_shapes: Path, **options: Any) -> list[StepBatches]:
    """All steps of a stream over the training set; `options` override the arguments of BatchStream."""
    samples = SampleSet(
        load_annotations(str(small_shapes / "train.json")), build_transforms(Augmentation(horizontal_flip=0.5)), seed=1
    )
    options = {"batch_size": 2, "num_steps": 6, "loading": Loading(num_processes=0), **options}
    with BatchStream(samples, order_of(samples), **options) as stream:
        return list(stream)


def ids_of(steps: list[StepBatches]) -> list[list[str]]:
    """The ids of each step's images, in order."""
    return [[name for batch in step.micro_batches for name in batch.image_ids] for step in steps]


def test_the_samples_of_a_step_do_not_depend_on_how_many_workers_share_them(small_shapes: Path):
    alone = read(small_shapes, batch_size=4, num_steps=5)
    first, second = (read(small_shapes, worker=WorkerRank(rank, 2), num_steps=5) for rank in (0, 1))
    for whole, first_share, second_share in zip(ids_of(alone), ids_of(first), ids_of(second)):
        assert Counter(whole) == Counter(first_share + second_share)
    seen = Counter(name for step in ids_of(alone)[:2] for name in step)
    assert max(seen.values()) == 1  # 8 of the first epoch's 9 samples


def test_a_resumed_stream_in_child_processes_gives_the_same_pixels(small_shapes: Path):
    whole = read(small_shapes)
    resumed = read(small_shapes, loading=Loading(num_processes=2), num_seen=4, num_steps=4)  # after 2 steps of 2 images
    assert ids_of(whole)[2:] == ids_of(resumed)
    for expected, step in zip(whole[2:], resumed):
        for expected_image, image in zip(expected.micro_batches[0].images, step.micro_batches[0].images):
            assert image.equal(expected_image)
        assert step.micro_batches[0].sample_seeds == expected.micro_batches[0].sample_seeds


def test_the_child_processes_end_with_the_block_after_an_error_too(small_shapes: Path):
    samples = SampleSet(load_annotations(str(small_shapes / "train.json")))
    num_before = len(multiprocessing.active_children())

    def take_two(stream: BatchStream) -> None:
        for number, _ in enumerate(stream):
            assert len(multiprocessing.active_children()) == num_before + 2
            if number == 1:
                raise KeyError("in the middle")

    loading = Loading(num_processes=2)
    stream = BatchStream(samples, order_of(samples), batch_size=2, num_steps=50, loading=loading)
    with pytest.raises(KeyError), stream:
        take_two(stream)
    assert len(multiprocessing.active_children()) == num_before


def test_accumulation_cuts_a_step_into_forward_passes(small_shapes: Path):
    (step,) = read(small_shapes, accumulate_steps=3, num_steps=1)
    assert [len(batch.images) for batch in step.micro_batches] == [2, 2, 2]
    target = step.micro_batches[0].targets[0]
    assert {"boxes", "labels", "masks"} <= target.keys() and "image_id" not in target
