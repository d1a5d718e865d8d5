"""Validation during a training: figures with a known answer, and shares of several workers that make up the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.training.sets import validation_truth
from jobs.training.validation import FIGURES, Validation, evaluate_shares
from model.network import build_model
from model.training.train_step import WorkerRank
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet
from pipeline.masks.rle import encode_mask, rle_areas
from pipeline.storage.files import Location
from tests.specs import small_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def annotated(shapes: Path) -> AnnotatedSet:
    return load_annotations(str(shapes / "train.json"))


def as_detected(annotated: AnnotatedSet, image: AnnotatedImage, score: float = 0.9) -> dict[str, list[Any]]:
    """The annotated objects of an image as a network would have detected them."""
    masks = [encode_mask(instance.mask(image.height, image.width)) for instance in image.instances]
    num = len(masks)
    categories = [annotated.categories[instance.label - 1] for instance in image.instances]
    return {
        "image_id": [image.path.uri] * num,
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


def test_the_annotated_objects_themselves_are_perfect(annotated: AnnotatedSet) -> None:
    detected = [as_detected(annotated, image) for image in annotated.images if image.instances]
    figures = evaluate_shares([detected[::2], detected[1::2]], validation_truth(annotated))
    assert figures == pytest.approx(dict.fromkeys((*FIGURES, "accuracy"), 1.0))


def test_accuracy_counts_objects_that_were_missed_and_made_up(annotated: AnnotatedSet) -> None:
    images = [image for image in annotated.images if image.instances]
    half = len(images) // 2
    detected = [as_detected(annotated, image) for image in images[:half]]
    found, missed = (sum(len(image.instances) for image in part) for part in (images[:half], images[half:]))
    assert evaluate_shares([detected], validation_truth(annotated))["accuracy"] == pytest.approx(
        found / (found + missed)
    )
    twice = [{name: column * 2 for name, column in columns.items()} for columns in detected]
    for columns in twice:
        columns["instance"] = list(range(len(columns["instance"])))
    assert evaluate_shares([twice], validation_truth(annotated))["accuracy"] == pytest.approx(
        found / (2 * found + missed)
    )
    low = [as_detected(annotated, image, score=0.4) for image in images]
    figures = evaluate_shares([low], validation_truth(annotated))
    assert figures["accuracy"] == 0 and figures["segm_AP"] == pytest.approx(1.0)
    assert "mean_iou" not in figures  # of no pair at all


def test_without_any_detection_every_figure_is_0(annotated: AnnotatedSet) -> None:
    assert evaluate_shares([[], []], validation_truth(annotated)) == dict.fromkeys((*FIGURES, "accuracy"), 0.0)


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

    def predict(rank: int, world_size: int, **options: Any) -> dict[str, dict[str, list[Any]]]:
        settings = {"device": CPU, "worker": WorkerRank(rank, world_size), **options}
        with Validation(photos, photos.categories, spec, **settings) as validation:
            return {columns["image_id"][0]: columns for columns in validation.predict(model)}

    alone = predict(0, 1)
    assert len(alone) > 5 and broken.path.uri not in alone
    first, second = predict(0, 2), predict(1, 2, num_processes=1)
    assert not first.keys() & second.keys() and first.keys() | second.keys() == alone.keys()
    for name, columns in {**first, **second}.items():
        np.testing.assert_allclose(columns["score"], alone[name]["score"], atol=1e-4)
    assert model.training, "the network is left as it is"


def test_the_figures_are_computed_in_another_thread(annotated: AnnotatedSet) -> None:
    detected = [as_detected(annotated, image) for image in annotated.images if image.instances]
    with Validation(annotated, annotated.categories, small_spec(3), device=CPU) as validation:
        figures = validation.evaluate_later([detected]).result(timeout=60)
    assert figures["segm_AP"] == pytest.approx(1.0)


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
