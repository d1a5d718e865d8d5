"""The sets of a training: which images are trained and validated on, under which class map."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.train import TrainConfig, TrainDataSection
from model.categories import Category
from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.class_map import align_categories, choose_categories
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.subset import SubsetRecord, take_subset
from pipeline.dataset.types import AnnotatedSet


def load_training_set(config: TrainConfig) -> tuple[AnnotatedSet, SubsetRecord | None]:
    """The images that are trained on, and which ones they are where only a part of the set is taken.

    Raises:
        ValueError: There is no set there, it holds no image, or fewer than the subset wanted; its categories are not
            those that were chosen.
    """
    data = config.data
    annotated = _load(data, data.train, data.image_root)
    if len(annotated) == 0:
        raise ValueError(f"data.train={data.train!r} holds no image; allowed is at least one")
    if data.classes is not None or data.rename:
        annotated = _aligned(data, annotated, choose_categories(annotated, names=data.classes, rename=data.rename))
    record = None
    if data.num_images is not None:
        annotated, record = take_subset(annotated, data.num_images, seed=config.train.seed)
    return annotated, record


def load_validation_set(data: TrainDataSection, categories: Sequence[Category]) -> AnnotatedSet:
    """The images of data.val under the training set's class map.

    Raises:
        ValueError: data.val is null, there is no set there, or it uses a category that is refused.
    """
    if data.val is None:
        raise ValueError("data.val is null; give a validation set")
    return _aligned(data, _load(data, data.val, data.val_image_root), categories)


def _load(data: TrainDataSection, uri: str, image_root: str | None) -> AnnotatedSet:
    annotated = load_annotations(
        uri,
        format=data.format,
        image_root=image_root,
        unknown=data.unknown_categories,
        default_category=data.default_category,
    )
    return annotated if data.extra_channels is None else with_extra_channels(annotated, data.extra_channels)


def _aligned(data: TrainDataSection, annotated: AnnotatedSet, categories: Sequence[Category]) -> AnnotatedSet:
    rename = {old: new for old, new in data.rename.items() if old != new}
    return align_categories(annotated, categories, unknown=data.unknown_categories, rename=rename)
