"""Subsets of a data set: drawn by seed, nested in one another, and recorded; the hash of annotations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

import msgspec
import numpy as np

from pipeline.dataset.types import AnnotatedSet, AnnotationError

_RECORD_VERSION = 1


@dataclass(frozen=True)
class SubsetRecord:
    """The images of a subset, and which set they are from.

    Attributes:
        seed: of the random draw.
        num_images, of_images: number of images in the subset and in the whole set.
        source_sha256: hash of the ids of the whole set, in order of id.
        image_ids: of the subset, in the order of the set.
    """

    seed: int
    num_images: int
    of_images: int
    source_sha256: str
    image_ids: tuple[int | str, ...]

    def to_dict(self) -> dict[str, object]:
        """The record as subset.json holds it."""
        return {"version": _RECORD_VERSION, **asdict(self)}


def take_subset(annotated: AnnotatedSet, num_images: int, *, seed: int = 0) -> tuple[AnnotatedSet, SubsetRecord]:
    """A uniform random subset of `num_images` images, in the order of the set, and its record.

    Which images are drawn depends only on the seed and the ids, not on the order of the file. Subsets of one seed are
    nested: its 5,000 images are among its 10,000.

    Raises:
        AnnotationError: `num_images` is below 1 or more than the set has.
    """
    if not 1 <= num_images <= len(annotated):
        raise AnnotationError(f"a subset of {num_images} images is wanted; allowed are 1 to {len(annotated)}")
    ids = sorted((image.image_id for image in annotated.images), key=lambda i: (isinstance(i, str), i))
    order = np.random.default_rng(seed).permutation(len(ids))
    chosen = {ids[index] for index in order[:num_images].tolist()}
    images = tuple(image for image in annotated.images if image.image_id in chosen)
    sha256 = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    record = SubsetRecord(seed, num_images, len(ids), sha256, tuple(image.image_id for image in images))
    return replace(annotated, images=images), record


def hash_annotations(annotated: AnnotatedSet) -> str:
    """sha256 of a set's images and annotations, whatever their format, and wherever the photos are."""
    sha256 = hashlib.sha256(msgspec.msgpack.encode((annotated.categories, annotated.keypoint_names)))
    for image in annotated.images:
        values = {field.name: getattr(image, field.name) for field in fields(image)}
        sha256.update(msgspec.msgpack.encode(values | {"path": "", "extra_paths": ()}))
    return sha256.hexdigest()
