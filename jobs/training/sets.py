"""Training and validation set of a configuration: which annotated images, under which class map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jobs.config.train import TrainConfig, TrainDataSection
from model.categories import Category
from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.class_map import align_categories, choose_categories
from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.subset import SubsetRecord, take_subset
from pipeline.dataset.types import AnnotatedSet
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import check_measurable


def load_training_set(config: TrainConfig) -> tuple[AnnotatedSet, SubsetRecord | None]:
    """The images to train on, and the record of the subset where data.num_images takes one, else None.

    Raises:
        ValueError: There is no set at data.train, it holds no image or fewer than data.num_images, or its categories
            do not fit data.classes and data.rename.
    """
    data = config.data
    annotated = _load(config, data.train, data.image_root)
    if len(annotated) == 0:
        raise ValueError(f"data.train={data.train!r} holds no image; allowed is at least one")
    if data.classes is not None or data.rename:
        annotated = _aligned(data, annotated, choose_categories(annotated, names=data.classes, rename=data.rename))
    record = None
    if data.num_images is not None:
        annotated, record = take_subset(annotated, data.num_images, seed=config.train.seed)
    return annotated, record


def load_validation_set(config: TrainConfig, categories: Sequence[Category]) -> AnnotatedSet:
    """The images of data.val under the training set's class map.

    Raises:
        ValueError: data.val is null, there is no set or image there, it has a category that data.unknown_categories
            refuses, or it cannot be measured with, see `validation_truth`.
    """
    data = config.data
    if data.val is None:
        raise ValueError("data.val is null; give a validation set")
    annotated = _load(config, data.val, data.val_image_root)
    if len(annotated) == 0:
        raise ValueError(f"data.val={data.val!r} holds no image; allowed is at least one")
    annotated = _aligned(data, annotated, categories)
    validation_truth(annotated)
    return annotated


def validation_truth(annotated: AnnotatedSet) -> Truth:
    """The ground truth of a validation set, checked before anything is trained.

    Images are named by their paths, since file names of several sets can be equal.

    Raises:
        ValueError: the set cannot be measured with: it has no image, one photo twice, or objects and no mask.
    """
    images = tuple(replace(image, file_name=image.path.uri) for image in annotated.images)
    truth = Truth.from_coco(to_coco(replace(annotated, images=images)), "the validation set")
    check_measurable(truth, ("bbox", "segm"))
    return truth


def _load(config: TrainConfig, uri: str, image_root: str | None) -> AnnotatedSet:
    data = config.data
    source = AnnotationSource(
        uri=uri, format=data.format, image_root=image_root, default_category=data.default_category
    )
    annotated = load_annotations(source, config.storage, unknown=data.unknown_categories)
    return annotated if data.extra_channels is None else with_extra_channels(annotated, data.extra_channels)


def _aligned(data: TrainDataSection, annotated: AnnotatedSet, categories: Sequence[Category]) -> AnnotatedSet:
    rename = {old: new for old, new in data.rename.items() if old != new}
    return align_categories(annotated, categories, unknown=data.unknown_categories, rename=rename)
