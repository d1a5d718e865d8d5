"""Subsets are drawn by seed, nested in one another, and recorded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.subset import hash_annotations, take_subset
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.manifest import to_json
from pipeline.storage.files import Location


def numbered(count: int) -> AnnotatedSet:
    images = tuple(AnnotatedImage(3 * n + 1, f"{n}.png", Location(f"{n}.png"), 5, 5) for n in range(count))
    return AnnotatedSet(images, SHAPE_CATEGORIES)


def ids(annotated: AnnotatedSet) -> list[int | str]:
    return [image.image_id for image in annotated.images]


def test_subsets_of_one_seed_are_nested_and_keep_the_order() -> None:
    whole = numbered(200)
    small, medium = take_subset(whole, 20, seed=4)[0], take_subset(whole, 80, seed=4)[0]
    assert len(small) == 20 and set(ids(small)) < set(ids(medium))
    assert ids(small) == sorted(ids(small))
    assert ids(take_subset(whole, 20, seed=5)[0]) != ids(small)
    assert ids(take_subset(whole, 200, seed=5)[0]) == ids(whole)


def test_the_order_of_the_file_does_not_matter() -> None:
    whole = numbered(50)
    backwards = replace(whole, images=whole.images[::-1])
    assert sorted(ids(take_subset(backwards, 10, seed=1)[0])) == ids(take_subset(whole, 10, seed=1)[0])


def test_a_subset_is_spread_over_the_whole_set() -> None:
    subsets = [take_subset(numbered(100), 10, seed=seed)[0] for seed in range(200)]
    counts = [sum(n in set(ids(subset)) for subset in subsets) for n in ids(numbered(100))]
    assert min(counts) > 5 and max(counts) < 40  # 20 expected, sd 4.2


def test_the_record_says_which_images_of_which_set() -> None:
    subset, record = take_subset(numbered(30), 7, seed=2)
    assert list(record.image_ids) == ids(subset) and (record.seed, record.num_images, record.of_images) == (2, 7, 30)
    assert take_subset(numbered(30), 7, seed=2)[1] == record
    assert take_subset(numbered(30), 8, seed=3)[1].source_sha256 == record.source_sha256
    assert take_subset(numbered(29), 7, seed=2)[1].source_sha256 != record.source_sha256
    assert json.loads(to_json(record.to_dict())) == {
        **{"version": 1, "seed": 2, "num_images": 7, "of_images": 30, "source_sha256": record.source_sha256},
        "image_ids": ids(subset),
    }


@pytest.mark.parametrize("count", [0, 31])
def test_sizes_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(AnnotationError, match="allowed are 1 to 30"):
        take_subset(numbered(30), count)


def test_the_hash_follows_the_annotations_and_not_the_place_of_the_photos(awkward_set: AnnotatedSet) -> None:
    before = hash_annotations(awkward_set)
    first, *others = awkward_set.images
    elsewhere = replace(first, path=Location("elsewhere.png"))
    assert hash_annotations(replace(awkward_set, images=(elsewhere, *others))) == before
    moved = replace(first.instances[0], box=(0.0, 0.0, 1.0, 1.0))
    changed = replace(first, instances=(moved, *first.instances[1:]))
    assert hash_annotations(replace(awkward_set, images=(changed, *others))) != before
    assert hash_annotations(replace(awkward_set, categories=awkward_set.categories[::-1])) != before
