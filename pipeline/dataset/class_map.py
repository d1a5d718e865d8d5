"""One class map for several data sets: a validation set under the training set's, a new set under a
model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from model.categories import Category
from pipeline.dataset.types import AnnotatedSet, AnnotationError, Instance


def choose_categories(
    annotated: AnnotatedSet, *, names: Sequence[str] | None = None, rename: Mapping[str, str] | None = None
) -> tuple[Category, ...]:
    """A class map for a set: `align_categories` then brings the set under it.

    Args:
        annotated: the set.
        names: the classes wanted, in the order of their labels; None takes the set's own, as renamed.
        rename: old name -> new name; several may go to one.

    Returns:
        Categories with the ids the set has for them, and ids above those for names that it lacks.

    Raises:
        AnnotationError: a category is renamed that the set does not have.
    """
    rename = dict(rename or {})
    own = {category.name: category.id for category in annotated.categories}
    if missing := sorted(set(rename) - set(own)):
        raise AnnotationError(f"categories {missing} are renamed, but the data has {sorted(own)}")
    ids: dict[str, int] = {}
    for name, number in own.items():
        ids.setdefault(rename.get(name, name), number)
    ids |= {name: number for name, number in own.items() if name in ids}
    free = itertools.count(max(own.values(), default=0) + 1)
    return tuple(Category(ids[name] if name in ids else next(free), name) for name in names or ids)


def align_categories(
    annotated: AnnotatedSet,
    categories: Sequence[Category],
    *,
    unknown: str = "refuse",
    rename: Mapping[str, str] | None = None,
) -> AnnotatedSet:
    """The same images under another class map (a model's, or the training set's for validation), matched by
    name.

    Args:
        categories: the class map wanted; labels follow it.
        unknown: what becomes of instances of a category that the map lacks: "refuse" raises; "ignore" makes
            them regions that are neither positive nor negative; "drop" makes them background.
        rename: old name -> name in `categories`, applied first (several may go to one).

    Returns:
        A set whose `categories` are those given. Labelled classes are translated; where a class of the map
        was not a class of the data set at all, it counts as not labelled.

    Raises:
        AnnotationError: unknown categories that are in use and refused, or a rename to a name that is not
            there.
    """
    if unknown not in ("refuse", "ignore", "drop"):
        raise AnnotationError(f"unknown categories: {unknown!r} is no choice; allowed are refuse, ignore, drop")
    rename = dict(rename or {})
    label_of = {category.name: index + 1 for index, category in enumerate(categories)}
    if missing := sorted(set(rename.values()) - set(label_of)):
        raise AnnotationError(f"categories are renamed to {missing}, which the class map lacks: {sorted(label_of)}")
    new_label = [0] + [label_of.get(rename.get(c.name, c.name), 0) for c in annotated.categories]
    used = {instance.label for image in annotated.images for instance in image.instances}
    lost = sorted(annotated.categories[label - 1].name for label in used if label and not new_label[label])
    if lost and unknown == "refuse":
        raise AnnotationError(
            f"the data uses categories that the class map lacks: {', '.join(lost)}; the map has "
            f"{', '.join(sorted(label_of))}. Rename them, or choose unknown categories to be ignored or "
            "dropped"
        )
    known = frozenset(label for label in new_label if label)
    complete = len(known) == len(categories)

    def translated(instances: Iterable[Instance]) -> Iterable[Instance]:
        for instance in instances:
            label = new_label[instance.label]
            if label or instance.label == 0:
                yield replace(instance, label=label)
            elif unknown == "ignore":
                yield replace(instance, label=0, iscrowd=True)

    images = []
    for image in annotated.images:
        labelled = image.labelled_classes
        if labelled is not None:
            labelled = tuple(sorted({new_label[label] for label in labelled} - {0}))
        elif not complete:
            labelled = tuple(sorted(known))
        images.append(replace(image, instances=tuple(translated(image.instances)), labelled_classes=labelled))
    return replace(annotated, images=tuple(images), categories=tuple(categories))
