"""Class maps: chooses a data set's categories, relabels a set to others, joins several sets to one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from model.categories import Category
from pipeline.dataset.types import AnnotatedSet, AnnotationError, Instance


def choose_categories(
    annotated: AnnotatedSet, *, names: Sequence[str] | None = None, rename: Mapping[str, str] | None = None
) -> tuple[Category, ...]:
    """A class map for a set, to which `align_categories` then relabels it.

    Args:
        names: the classes wanted, in the order of their labels; None takes the set's own, as renamed.
        rename: old name -> new name; several old names may have the same new one.

    Returns:
        Categories with the ids that the set has for them, and ids above those for names that it lacks.

    Raises:
        AnnotationError: `names` has a name twice, or `rename` names a category that the set does not have.
    """
    rename = dict(rename or {})
    own = {category.name: category.id for category in annotated.categories}
    if repeated := [name for name, count in Counter(names or ()).items() if count > 1]:
        raise AnnotationError(f"the class {repeated[0]!r} is wanted twice; allowed is each class once")
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
    """The same images with labels of another class map: a model's, or for validation the training set's.

    Categories are matched by name.

    Args:
        categories: the class map wanted; label = index + 1.
        unknown: instances of a category that the map lacks: "refuse" raises; "ignore" makes them regions that are
            neither positive nor negative; "drop" makes them background.
        rename: old name -> name in `categories`, applied first; several old names may have the same new one.

    Returns:
        A set with these `categories`. Labelled classes are translated; a class of the map that the data set does not
        have counts as not labelled.

    Raises:
        AnnotationError: unknown categories that are in use and refused, or a rename to a name that the map lacks.
    """
    if unknown not in ("refuse", "ignore", "drop"):
        raise AnnotationError(f"unknown categories: {unknown!r} is no choice; allowed are refuse, ignore, drop")
    rename = dict(rename or {})
    label_of = {category.name: index + 1 for index, category in enumerate(categories)}
    if missing := sorted(set(rename.values()) - set(label_of)):
        raise AnnotationError(f"categories are renamed to {missing}, which the class map lacks: {sorted(label_of)}")
    new_label = [0] + [label_of.get(rename.get(c.name, c.name), 0) for c in annotated.categories]
    used = {instance.label for image in annotated.images for instance in image.instances}
    unmapped = sorted(annotated.categories[label - 1].name for label in used if label and not new_label[label])
    if unmapped and unknown == "refuse":
        raise AnnotationError(
            f"the data uses categories that the class map lacks: {', '.join(unmapped)}; the map has "
            f"{', '.join(sorted(label_of))}. Rename them, or choose unknown categories to be ignored or dropped"
        )
    known = sorted({label for label in new_label if label})
    is_complete = len(known) == len(categories)

    def relabelled(instances: Iterable[Instance]) -> Iterable[Instance]:
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
        elif not is_complete:
            labelled = tuple(known)
        images.append(replace(image, instances=tuple(relabelled(image.instances)), labelled_classes=labelled))
    return replace(annotated, images=tuple(images), categories=tuple(categories))


def drop_empty_categories(annotated: AnnotatedSet) -> AnnotatedSet:
    """The set without the categories that have no object, which a note names; as it is where none has one."""
    used = {instance.label for image in annotated.images for instance in image.instances}
    kept = [category for label, category in enumerate(annotated.categories, start=1) if label in used]
    dropped = [category.name for category in annotated.categories if category not in kept]
    if not kept or not dropped:
        return annotated
    note = f"categories without an object dropped ({', '.join(dropped)})"
    return replace(align_categories(annotated, kept), notes={**annotated.notes, note: len(dropped)})


def join_sets(sets: Sequence[AnnotatedSet]) -> AnnotatedSet:
    """Several data sets as one, in which equal file names and ids stay apart: `1/a.jpg` is the first set's.

    Categories are matched by name. A category keeps the id of the first set that has it, or gets a free one where the
    id is another category's. A class that a set does not have counts as not looked for on its images.

    Raises:
        AnnotationError: the sets have different keypoints.
    """
    if len(layouts := {annotated.keypoint_names for annotated in sets}) > 1:
        raise AnnotationError(f"the sets have different keypoints: {sorted(layouts)}; allowed is one layout for all")
    ids: dict[str, int] = {}
    highest = max((category.id for annotated in sets for category in annotated.categories), default=0)
    free = itertools.count(highest + 1)
    for category in (category for annotated in sets for category in annotated.categories):
        if category.name not in ids:
            ids[category.name] = next(free) if category.id in ids.values() else category.id
    categories = tuple(Category(number, name) for name, number in ids.items())
    images = []
    notes: Counter[str] = Counter()
    for number, annotated in enumerate(sets, start=1):
        notes.update(annotated.notes)
        if missing := sorted(set(ids) - {category.name for category in annotated.categories}):
            note = f"classes that set {number} does not have, so they count as not looked for ({', '.join(missing)})"
            notes[note] = len(missing)
        for image in align_categories(annotated, categories).images:
            images.append(
                replace(image, image_id=f"{number}/{image.image_id}", file_name=f"{number}/{image.file_name}")
            )
    return AnnotatedSet(tuple(images), categories, layouts.pop() if layouts else (), dict(notes))
