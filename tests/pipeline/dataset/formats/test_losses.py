"""Losses of a conversion are counted by kind."""

from __future__ import annotations

from model.categories import Category
from pipeline.dataset.formats.losses import count_losses
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, Instance
from pipeline.storage.files import Location


def test_each_kind_is_counted_and_nothing_is_not() -> None:
    plain = AnnotatedImage(1, "a.png", Location("a.png"), 5, 6, (Instance(1, (0, 0, 1, 1), []),))
    posed = Instance(1, (0, 0, 1, 1), [], keypoints=(1.0, 1.0, 2.0))
    extras = (Location("depth.png"), Location("heat.png"))
    rich = AnnotatedImage("two", "s/b.png", Location("b.png"), 5, 6, (posed, posed), (1,), extras)
    annotated = AnnotatedSet((plain, rich), (Category(3, "x"), Category(9, "y")))
    assert count_losses(annotated, ["a.png", "s__b.png"], image_ids=[1, 2], category_ids=[1, 2]) == {
        "photos renamed": 1,
        "image ids numbered anew or replaced by names": 1,
        "keypoints": 2,
        "lists of labelled classes": 1,
        "extra channels": 2,
        "category ids numbered anew": 2,
    }
    nothing = count_losses(AnnotatedSet((plain,), annotated.categories), ["a.png"], image_ids=[1], category_ids=[3, 9])
    assert nothing == {}
