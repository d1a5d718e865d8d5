"""The sets of a training: class maps and missing labels, from the annotation file through the settings to the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jobs.config.train import TrainConfig
from jobs.training.sets import load_training_set, load_validation_set
from model.spec import ModelSpec
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.types import AnnotationError
from tests.model.small_trainings import QUICK, build

WHOLE = [[0, 0, 128, 0, 128, 128, 0, 128]]
SQUARE = [[20, 20, 80, 20, 80, 80, 20, 80]]
CAR, BUS = {"id": 3, "name": "car"}, {"id": 7, "name": "bus"}


def annotation(category_id: int, segmentation: list[list[int]], **more: Any) -> dict[str, Any]:
    """A square object in COCO's form; the polygon starts at its upper left corner."""
    x, y, size = segmentation[0][0], segmentation[0][1], segmentation[0][2] - segmentation[0][0]
    bbox = [x, y, size, size]
    return {"category_id": category_id, "segmentation": segmentation, "bbox": bbox, "area": size * size, **more}


def config_of(folder: Path, annotations: list[dict], categories: list[dict], image: dict, data: dict) -> TrainConfig:
    """A training on one image of noise, 128 x 128 px, with these annotations and keys of the data section."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 128, "width": 128, **image}],
        "annotations": [{"id": i, "image_id": 1, "iscrowd": 0, **row} for i, row in enumerate(annotations)],
        "categories": categories,
    }
    (folder / "a.json").write_text(json.dumps(content))
    places = {"train": str(folder / "a.json"), "val": str(folder / "a.json")}
    train = {"max_steps": 1, "learning_rate": 0.1}
    return TrainConfig.model_validate(
        {"data": {**places, **data}, "train": train, "output": {"uri": str(folder / "out")}}
    )


def losses_and_gradients(
    folder: Path,
    annotations: list[dict],
    categories: list[dict] = [CAR],  # noqa: B006 (never changed)
    image: dict | None = None,
    **data: Any,
) -> tuple[dict[str, float], Tensor]:
    """The loss terms, and the gradient of the classification loss by the bias of each class's logit, float32 [K + 1].

    A positive gradient trains the class towards absence, a negative one towards presence.
    """
    config = config_of(folder, annotations, categories, image or {}, data)
    annotated, _ = load_training_set(config)
    sample = SampleSet(annotated)[(0, 0)]
    pixels, target = sample.image, sample.target
    quick = {**QUICK, "image_min_size": 128, "image_max_size": 128}
    model = build(ModelSpec.tiny(len(annotated.categories), **quick, class_loss="focal")).train()
    torch.manual_seed(0)
    losses = model([pixels], [target])
    (gradients,) = torch.autograd.grad(losses["loss_classifier"], model.roi_heads.box_predictor.cls_score.bias)
    return {name: float(value.detach()) for name, value in losses.items()}, gradients


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    losses, gradients = losses_and_gradients(tmp_path, [])
    assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0 and gradients[1] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_box_reg"] == 0


def test_a_crowd_is_neither_positive_nor_negative(tmp_path: Path) -> None:
    losses, gradients = losses_and_gradients(tmp_path, [annotation(3, WHOLE, iscrowd=1)])
    assert losses["loss_classifier"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert (gradients == 0).all()


def test_a_class_that_was_not_labelled_gets_no_gradient(tmp_path: Path) -> None:
    _, gradients = losses_and_gradients(tmp_path, [], [CAR, BUS], {"labelled_category_ids": [7]})
    assert gradients[1] == 0 and gradients[2] > 0
    # LVIS: the bus was looked for and is absent, not all cars are drawn; the one that is drawn is a car.
    lvis = {"neg_category_ids": [7], "not_exhaustive_category_ids": [3]}
    losses, gradients = losses_and_gradients(tmp_path, [annotation(3, SQUARE)], [CAR, BUS], lvis)
    assert losses["loss_box_reg"] > 0 and losses["loss_mask"] > 0 and losses["loss_rpn_box_reg"] > 0
    assert gradients[1] < 0 < gradients[2]


def test_undeclared_categories_are_refused_ignored_or_dropped(tmp_path: Path) -> None:
    unknown = [annotation(9, WHOLE)]
    with pytest.raises(AnnotationError, match="category_id 9, which is not declared"):
        losses_and_gradients(tmp_path, unknown)
    ignored, gradients = losses_and_gradients(tmp_path, unknown, unknown_categories="ignore")
    assert ignored["loss_classifier"] == ignored["loss_box_reg"] == 0 and (gradients == 0).all()
    assert (
        losses_and_gradients(tmp_path, unknown, unknown_categories="drop")[0] == losses_and_gradients(tmp_path, [])[0]
    )


def test_categories_outside_the_classes_are_refused_ignored_or_dropped(tmp_path: Path) -> None:
    bus = [annotation(7, WHOLE)]
    with pytest.raises(AnnotationError, match="uses categories that the class map lacks: bus"):
        losses_and_gradients(tmp_path, bus, [CAR, BUS], classes=["car"])
    ignored, _ = losses_and_gradients(tmp_path, bus, [CAR, BUS], classes=["car"], unknown_categories="ignore")
    assert ignored["loss_classifier"] == ignored["loss_box_reg"] == 0
    dropped, gradients = losses_and_gradients(tmp_path, bus, [CAR, BUS], classes=["car"], unknown_categories="drop")
    assert dropped["loss_classifier"] > 0 and dropped["loss_box_reg"] == 0 and gradients[1] > 0


def test_categories_are_mapped_by_name(tmp_path: Path) -> None:
    both = [annotation(3, SQUARE), annotation(7, [[82, 82, 120, 82, 120, 120, 82, 120]])]
    mapped, _ = losses_and_gradients(tmp_path, both, [CAR, BUS], rename={"bus": "vehicle", "car": "vehicle"})
    plain, _ = losses_and_gradients(tmp_path, [{**row, "category_id": 3} for row in both])
    assert mapped == plain and mapped["loss_mask"] > 0
    config = config_of(tmp_path, both, [CAR, BUS], {}, {"rename": {"bus": "car"}, "classes": ["boat", "car"]})
    annotated, _ = load_training_set(config)
    assert [(category.id, category.name) for category in annotated.categories] == [(8, "boat"), (3, "car")]
    assert annotated.images[0].labelled_classes == (2,), "nobody has looked for boats"
    validated = load_validation_set(config, annotated.categories)
    assert [instance.label for instance in validated.images[0].instances] == [2, 2]
    with pytest.raises(AnnotationError, match=r"categories \['lorry'\] are renamed, but the data has"):
        load_training_set(config_of(tmp_path, both, [CAR, BUS], {}, {"rename": {"lorry": "car"}}))


def test_a_set_without_images_or_with_too_few_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a subset of 2 images is wanted; allowed are 1 to 1"):
        load_training_set(config_of(tmp_path, [], [CAR], {}, {"num_images": 2}))
    config = config_of(tmp_path, [], [CAR], {}, {})
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content | {"images": []}))
    with pytest.raises(ValueError, match=r"data\.train=.*a\.json' holds no image"):
        load_training_set(config)
    with pytest.raises(ValueError, match=r"data\.val=.*a\.json' holds no image"):
        load_validation_set(config, ())


def test_a_subset_is_recorded_and_a_whole_set_is_not(tmp_path: Path) -> None:
    assert load_training_set(config_of(tmp_path, [], [CAR], {}, {}))[1] is None
    record = load_training_set(config_of(tmp_path, [], [CAR], {}, {"num_images": 1}))[1]
    assert record is not None and (record.num_images, record.of_images) == (1, 1)
