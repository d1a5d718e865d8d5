"""Validation during a training: figures with a known answer, and shares of several workers that make up the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.training.sets import validation_truth
from jobs.training.validation import CLASS_FIGURES, FIGURES, Validation, evaluate_shares
from model.network import build_model
from model.training.train_step import WorkerRank
from pipeline.bulk.encode import ImageResult
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet
from pipeline.masks.rle import encode_mask, rle_areas
from pipeline.plan import PlannedImage
from pipeline.schema import OK
from pipeline.storage.files import Location
from tests.specs import small_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def annotated(shapes: Path) -> AnnotatedSet:
    return load_annotations(str(shapes / "train.json"))


def as_detected(annotated: AnnotatedSet, image: AnnotatedImage, score: float = 0.9) -> ImageResult:
    """The annotated objects of an image as a network would have detected them."""
    masks = [encode_mask(instance.mask(image.height, image.width)) for instance in image.instances]
    num = len(masks)
    categories = [annotated.categories[instance.label - 1] for instance in image.instances]
    columns: dict[str, list[Any]] = {
        "instance": list(range(num)),
        "category_id": [category.id for category in categories],
        "category": [category.name for category in categories],
        "score": [score] * num,
        **{name: [float(i.box[k]) for i in image.instances] for k, name in enumerate(("x1", "y1", "x2", "y2"))},
        "area_px": rle_areas(masks).tolist(),
        "rle_counts": masks,
        "image_height": [image.height] * num,
        "image_width": [image.width] * num,
        "keypoints": [None] * num,
    }
    planned = PlannedImage(image.file_name, image.path.uri)
    return ImageResult(planned, OK, None, image.height, image.width, None, columns)


def test_the_annotated_objects_themselves_are_perfect(annotated: AnnotatedSet) -> None:
    detected = [as_detected(annotated, image) for image in annotated.images if image.instances]
    figures = evaluate_shares([detected[::2], detected[1::2]], validation_truth(annotated))
    assert [of_class["category"] for of_class in figures.by_class] == ["circle", "square", "triangle"]
    assert all(of_class["segm_AP"] == pytest.approx(1.0) for of_class in figures.by_class)
    assert figures.overall == pytest.approx(dict.fromkeys((*FIGURES, "accuracy"), 1.0))


def test_accuracy_counts_objects_that_were_missed_and_made_up(annotated: AnnotatedSet) -> None:
    images = [image for image in annotated.images if image.instances]
    half = len(images) // 2
    detected = [as_detected(annotated, image) for image in images[:half]]
    found, missed = (sum(len(image.instances) for image in part) for part in (images[:half], images[half:]))
    assert evaluate_shares([detected], validation_truth(annotated)).overall["accuracy"] == pytest.approx(
        found / (found + missed)
    )
    doubled = [{name: column * 2 for name, column in result.instances.items()} for result in detected]
    for columns in doubled:
        columns["instance"] = list(range(len(columns["instance"])))
    twice = [replace(result, instances=columns) for result, columns in zip(detected, doubled)]
    assert evaluate_shares([twice], validation_truth(annotated)).overall["accuracy"] == pytest.approx(
        found / (2 * found + missed)
    )
    low = [as_detected(annotated, image, score=0.4) for image in images]
    figures = evaluate_shares([low], validation_truth(annotated)).overall
    assert figures["accuracy"] == 0 and figures["segm_AP"] == pytest.approx(1.0)
    assert "mean_iou" not in figures  # of no pair at all


def test_without_any_detection_every_figure_is_0(annotated: AnnotatedSet) -> None:
    figures = evaluate_shares([[], []], validation_truth(annotated))
    assert figures.overall == dict.fromkeys((*FIGURES, "accuracy"), 0.0)
    assert figures.by_class[0] == {"category": "circle", **dict.fromkeys(CLASS_FIGURES, 0.0)}


def test_the_shares_of_two_workers_are_those_of_one_and_broken_photos_are_left_out(
    annotated: AnnotatedSet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    spec = small_spec(3, score_threshold=0.0)
    model = build_model(spec).train()
    broken = annotated.images[4]
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"torn")
    images = [replace(image, path=Location(str(torn))) if image is broken else image for image in annotated.images]
    photos = replace(annotated, images=tuple(images))

    def predict(rank: int, world_size: int, **options: Any) -> dict[str, ImageResult]:
        settings = {"device": CPU, "worker": WorkerRank(rank, world_size), **options}
        with Validation(photos, photos.categories, spec, **settings) as validation:
            return {result.image.image_id: result for result in validation.predict(model)}

    alone = predict(0, 1)
    assert alone.keys() == {image.file_name for image in annotated.images}
    assert [name for name, result in alone.items() if result.status != OK] == [broken.file_name]
    assert "unreadable" in str(alone[broken.file_name].error)
    first, second = predict(0, 2), predict(1, 2, num_processes=1)
    assert not first.keys() & second.keys() and first.keys() | second.keys() == alone.keys()
    for name, result in {**first, **second}.items():
        if result.status == OK:
            np.testing.assert_allclose(result.instances["score"], alone[name].instances["score"], atol=1e-4)
    assert model.training, "the network is left as it is"


def test_the_figures_are_computed_in_another_thread(annotated: AnnotatedSet) -> None:
    detected = [as_detected(annotated, image) for image in annotated.images if image.instances]
    with Validation(annotated, annotated.categories, small_spec(3), device=CPU) as validation:
        written: list[ImageResult] = []
        figures = validation.evaluate_later([detected[:2], detected[2:]], written.extend).result(timeout=60)
    assert figures.overall["segm_AP"] == pytest.approx(1.0) and written == detected


def test_a_set_that_cannot_be_measured_with_is_refused_before_the_training(annotated: AnnotatedSet) -> None:
    first = annotated.images[0]
    twice = replace(annotated, images=(first, replace(first, image_id=77)))
    with pytest.raises(ValueError, match=rf"images {first.image_id} and 77 have one file_name"):
        validation_truth(twice)
    with pytest.raises(ValueError, match="has no image"):
        validation_truth(replace(annotated, images=()))
    other_folder = replace(first, image_id=77, path=first.path.parent / f"b/{first.file_name}")
    truth = validation_truth(replace(annotated, images=(first, other_folder)))
    assert len(truth.file_names) == 2, "equal names in two folders are two images"
