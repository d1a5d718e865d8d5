"""Subsets of a data set: drawn by seed, nested in one another, and recorded so that they can be taken again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from pipeline.dataset.types import AnnotatedSet, AnnotationError
from pipeline.storage import files

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "version": _RECORD_VERSION,
            "seed": self.seed,
            "num_images": self.num_images,
            "of_images": self.of_images,
            "source_sha256": self.source_sha256,
            "image_ids": list(self.image_ids),
        }


def take_subset(annotated: AnnotatedSet, num_images: int, *, seed: int = 0) -> tuple[AnnotatedSet, SubsetRecord]:
    """A uniform random subset of `num_images` images, in the order of the set, and its record.

    Which images are drawn depends only on the seed and the ids, not on the order of the file. Subsets of one seed are
    nested: its 5,000 images are among its 10,000.

    Raises:
        AnnotationError: `num_images` is below 1 or more than the set has.
    """
    if not 1 <= num_images <= len(annotated):
        raise AnnotationError(f"a subset of {num_images} images is wanted; allowed are 1 to {len(annotated)}")
    ids = _sorted_ids(annotated)
    order = np.random.default_rng(seed).permutation(len(ids))
    chosen = {ids[index] for index in order[:num_images].tolist()}
    subset = _with_ids(annotated, chosen)
    record = SubsetRecord(
        seed, num_images, len(annotated), _hash_of(ids), tuple(image.image_id for image in subset.images)
    )
    return subset, record


def save_subset(record: SubsetRecord, uri: str) -> None:
    """Writes the record as JSON, atomically."""
    files.write_json(uri, record.to_dict())


def load_subset(annotated: AnnotatedSet, uri: str) -> tuple[AnnotatedSet, SubsetRecord]:
    """The images that a record names, and the record.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is no record, or that of another data set.
    """
    content = files.read_json(uri)
    try:
        record = SubsetRecord(
            int(content["seed"]),
            int(content["num_images"]),
            int(content["of_images"]),
            str(content["source_sha256"]),
            tuple(content["image_ids"]),
        )
    except (KeyError, TypeError, ValueError):
        raise AnnotationError(f"{uri} is no record of a subset") from None
    if _hash_of(_sorted_ids(annotated)) != record.source_sha256:
        raise AnnotationError(
            f"{uri} is the record of a subset of another data set: of {record.of_images} images, where this one has "
            f"{len(annotated)}, or of other ids"
        )
    return _with_ids(annotated, set(record.image_ids)), record


def hash_annotations(annotated: AnnotatedSet) -> str:
    """sha256 of a set's images and annotations, whatever their format, and wherever the photos are."""
    sha256 = hashlib.sha256(msgspec.msgpack.encode((annotated.categories, annotated.keypoint_names)))
    for image in annotated.images:
        sha256.update(msgspec.msgpack.encode(replace(image, path="", extra_paths=())))
    return sha256.hexdigest()


def _with_ids(annotated: AnnotatedSet, chosen: set[int | str]) -> AnnotatedSet:
    return replace(annotated, images=tuple(image for image in annotated.images if image.image_id in chosen))


def _sorted_ids(annotated: AnnotatedSet) -> list[int | str]:
    return sorted((image.image_id for image in annotated.images), key=lambda i: (isinstance(i, str), i))


def _hash_of(ids: list[int | str]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
