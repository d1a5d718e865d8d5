"""Missing labels from the annotation file, by the choice of the settings, to the loss itself."""

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


def annotation(category_id: int, segmentation: list, **more: Any) -> dict[str, Any]:
    x, y, size = segmentation[0][0], segmentation[0][1], segmentation[0][2] - segmentation[0][0]
    bbox = [x, y, size, size]
    return {"category_id": category_id, "segmentation": segmentation, "bbox": bbox, "area": size * size, **more}


def config_of(folder: Path, annotations: list[dict], categories: list[dict], image: dict, data: dict) -> TrainConfig:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 128, "width": 128, **image}],
        "annotations": [{"id": i, "image_id": 1, "iscrowd": 0, **one} for i, one in enumerate(annotations)],
        "categories": categories,
    }
    (folder / "a.json").write_text(json.dumps(content))
    places = {"train": str(folder / "a.json"), "val": str(folder / "a.json")}
    train = {"max_steps": 1, "learning_rate": 0.1}
    return TrainConfig.model_validate(
        {"data": {**places, **data}, "train": train, "output": {"uri": str(folder / "out")}}
    )


def losses_and_pushes(
    folder: Path,
    annotations: list[dict],
    categories: list[dict] = [CAR],  # noqa: B006 (never changed)
    image: dict | None = None,
    **data: Any,
) -> tuple[dict[str, float], Tensor]:
    """The loss terms, and the gradient of the classification loss by each logit's bias: positive pushes down."""
    config = config_of(folder, annotations, categories, image or {}, data)
    annotated, _ = load_training_set(config)
    picture, target = SampleSet(annotated)[0]
    quick = {**QUICK, "image_min_size": 128, "image_max_size": 128}
    model = build(ModelSpec.tiny(len(annotated.categories), **quick, class_loss="focal")).train()
    torch.manual_seed(0)
    losses = model([picture], [target])
    (pushes,) = torch.autograd.grad(losses["loss_classifier"], model.roi_heads.box_predictor.cls_score.bias)
    return {name: float(value.detach()) for name, value in losses.items()}, pushes


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    losses, pushes = losses_and_pushes(tmp_path, [])
    assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0 and pushes[1] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_box_reg"] == 0


def test_a_crowd_is_neither_positive_nor_negative(tmp_path: Path) -> None:
    losses, pushes = losses_and_pushes(tmp_path, [annotation(3, WHOLE, iscrowd=1)])
    assert losses["loss_classifier"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert (pushes == 0).all()


def test_a_class_that_was_not_labelled_is_not_punished(tmp_path: Path) -> None:
    _, pushes = losses_and_pushes(tmp_path, [], [CAR, BUS], {"labelled_category_ids": [7]})
    assert pushes[1] == 0 and pushes[2] > 0
    # LVIS: the bus was looked for and is absent, not all cars are drawn; the one that is drawn is a car.
    lvis = {"neg_category_ids": [7], "not_exhaustive_category_ids": [3]}
    losses, pushes = losses_and_pushes(tmp_path, [annotation(3, SQUARE)], [CAR, BUS], lvis)
    assert losses["loss_box_reg"] > 0 and losses["loss_mask"] > 0 and losses["loss_rpn_box_reg"] > 0
    assert pushes[1] < 0 < pushes[2]


def test_unknown_categories_are_refused_or_what_was_chosen(tmp_path: Path) -> None:
    unknown = [annotation(9, WHOLE)]
    with pytest.raises(AnnotationError, match="category_id 9, which is not declared"):
        losses_and_pushes(tmp_path, unknown)
    ignored, pushes = losses_and_pushes(tmp_path, unknown, unknown_categories="ignore")
    assert ignored["loss_classifier"] == ignored["loss_box_reg"] == 0 and (pushes == 0).all()
    assert losses_and_pushes(tmp_path, unknown, unknown_categories="drop")[0] == losses_and_pushes(tmp_path, [])[0]


def test_categories_that_are_not_among_the_classes_likewise(tmp_path: Path) -> None:
    bus = [annotation(7, WHOLE)]
    with pytest.raises(AnnotationError, match="uses categories that the class map lacks: bus"):
        losses_and_pushes(tmp_path, bus, [CAR, BUS], classes=["car"])
    ignored, _ = losses_and_pushes(tmp_path, bus, [CAR, BUS], classes=["car"], unknown_categories="ignore")
    assert ignored["loss_classifier"] == ignored["loss_box_reg"] == 0
    dropped, pushes = losses_and_pushes(tmp_path, bus, [CAR, BUS], classes=["car"], unknown_categories="drop")
    assert dropped["loss_classifier"] > 0 and dropped["loss_box_reg"] == 0 and pushes[1] > 0


def test_categories_are_mapped_by_name(tmp_path: Path) -> None:
    both = [annotation(3, SQUARE), annotation(7, [[82, 82, 120, 82, 120, 120, 82, 120]])]
    mapped, _ = losses_and_pushes(tmp_path, both, [CAR, BUS], rename={"bus": "vehicle", "car": "vehicle"})
    plain, _ = losses_and_pushes(tmp_path, [{**one, "category_id": 3} for one in both])
    assert mapped == plain and mapped["loss_mask"] > 0
    config = config_of(tmp_path, both, [CAR, BUS], {}, {"rename": {"bus": "car"}, "classes": ["boat", "car"]})
    annotated, _ = load_training_set(config)
    assert [(c.id, c.name) for c in annotated.categories] == [(8, "boat"), (3, "car")]
    assert annotated.images[0].labelled_classes == (2,), "nobody has looked for boats"
    validated = load_validation_set(config.data, annotated.categories)
    assert [i.label for i in validated.images[0].instances] == [2, 2]
    with pytest.raises(AnnotationError, match=r"categories \['lorry'\] are renamed, but the data has"):
        load_training_set(config_of(tmp_path, both, [CAR, BUS], {}, {"rename": {"lorry": "car"}}))
