"""Class maps: sets are relabelled by category name, and categories are chosen with their ids."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.categories import Category
from pipeline.dataset.class_map import align_categories, choose_categories
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Instance
from pipeline.storage.files import Location


def animals() -> AnnotatedSet:
    def image(*labels: int, labelled: tuple[int, ...] | None = None) -> AnnotatedImage:
        instances = tuple(Instance(label, (0, 0, 2, 2), [], iscrowd=label == 0) for label in labels)
        return AnnotatedImage(1, "a", Location("a"), 5, 5, instances, labelled)

    names = (Category(5, "cat"), Category(7, "dog"), Category(9, "emu"))
    return AnnotatedSet((image(1, 2, 0), image(labelled=(1, 3))), names)


def labels_of(annotated: AnnotatedSet) -> list[tuple[int, bool]]:
    return [(i.label, i.iscrowd) for i in annotated.images[0].instances]


def test_a_set_is_relabelled_to_another_class_map_by_name() -> None:
    wanted = (Category(1, "dog"), Category(2, "emu"), Category(3, "cat"))
    aligned = align_categories(animals(), wanted)
    assert aligned.categories == wanted
    assert labels_of(aligned) == [(3, False), (1, False), (0, True)]
    assert aligned.images[0].labelled_classes is None
    assert aligned.images[1].labelled_classes == (2, 3)


def test_unknown_classes_are_refused_renamed_ignored_or_dropped() -> None:
    wanted = (Category(1, "cat"), Category(2, "fox"))
    with pytest.raises(AnnotationError, match="lacks: dog; the map has cat, fox"):
        align_categories(animals(), wanted)  # emu is not in use
    assert labels_of(align_categories(animals(), wanted, rename={"dog": "fox"})) == [(1, False), (2, False), (0, True)]
    ignored = align_categories(animals(), wanted, unknown="ignore")
    assert labels_of(ignored) == [(1, False), (0, True), (0, True)]
    assert labels_of(align_categories(animals(), wanted, unknown="drop")) == [(1, False), (0, True)]
    # The set has no class fox, so foxes were not looked for.
    assert ignored.images[0].labelled_classes == (1,)
    with pytest.raises(AnnotationError, match=r"renamed to \['wolf'\]"):
        align_categories(animals(), wanted, rename={"dog": "wolf"})
    with pytest.raises(AnnotationError, match="'keep' is no choice"):
        align_categories(animals(), wanted, unknown="keep")


def test_two_classes_may_become_one() -> None:
    merged = align_categories(
        animals(), (Category(1, "animal"),), rename=dict.fromkeys(("cat", "dog", "emu"), "animal")
    )
    assert labels_of(merged) == [(1, False), (1, False), (0, True)]
    assert replace(merged.images[1]).labelled_classes == (1,)


def test_a_class_map_takes_the_ids_of_the_set_and_new_ones_above_them() -> None:
    assert choose_categories(animals()) == animals().categories
    chosen = choose_categories(animals(), names=("fox", "emu", "cat", "yak"))
    assert chosen == (Category(10, "fox"), Category(9, "emu"), Category(5, "cat"), Category(11, "yak"))


def test_a_renamed_class_keeps_its_id_unless_the_new_name_has_one() -> None:
    assert choose_categories(animals(), rename={"dog": "wolf"}) == (
        Category(5, "cat"),
        Category(7, "wolf"),
        Category(9, "emu"),
    )
    merged = choose_categories(animals(), rename={"cat": "emu"})
    assert merged == (Category(9, "emu"), Category(7, "dog"))
    with pytest.raises(AnnotationError, match=r"categories \['fox'\] are renamed, but the data has"):
        choose_categories(animals(), rename={"fox": "cat"})


def test_a_class_wanted_twice_is_refused(awkward_set: AnnotatedSet) -> None:
    with pytest.raises(AnnotationError, match="the class 'circle' is wanted twice"):
        choose_categories(awkward_set, names=["circle", "square", "circle"])
