"""Ground truth in the form evaluation wants it, and which image of a run is which image of the truth."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.types import AnnotatedSet
from pipeline.masks.rle import FARTHEST_POLYGON_PX
from pipeline.storage import files


class EvaluationError(ValueError):
    """A run and a ground truth that cannot be compared. The message names what clashes."""


@dataclass(frozen=True)
class Truth:
    """Annotated images, as COCO's own evaluation reads them: nothing rounded, clipped or reordered.

    Attributes:
        images: COCO image entries (`id`, `file_name`, `height`, `width`).
        annotations: COCO annotations (`bbox` is XYWH in pixels of the image).
        categories: COCO categories.
        num_not_labelled: annotations that were left out, because nobody looked for their class on their image.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    num_not_labelled: int = 0

    @classmethod
    def from_coco(cls, content: Mapping[str, Any], where: str = "the ground truth") -> Truth:
        """The truth of a COCO JSON object.

        Where an image says which classes were looked for on it (see `labelled`), annotations of the others are left
        out: some of those objects are drawn and some are not, so they can be neither found nor missed.

        Raises:
            EvaluationError: it is none, or names an image or category twice.
        """
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
                raise EvaluationError(f"{where} has no list {key!r}, so it is no COCO annotation file")
        for key in ("images", "categories"):
            ids = [entry["id"] for entry in content[key]]
            if len(set(ids)) < len(ids):
                twice = next(i for n, i in enumerate(ids) if i in ids[:n])
                raise EvaluationError(f"{where} names {key} id {twice!r} twice")
        whole = cls(content["images"], content["annotations"], content["categories"])
        if not (labelled := whole.labelled):
            return whole
        kept = [
            entry
            for entry in whole.annotations
            if (looked_for := labelled.get(entry["image_id"])) is None or entry["category_id"] in looked_for
        ]
        return cls(whole.images, kept, whole.categories, len(whole.annotations) - len(kept))

    @classmethod
    def load(cls, source: Truth | AnnotatedSet | Mapping[str, Any] | str) -> Truth:
        """The truth of a COCO JSON file (its URI) or object, or of any set that `pipeline.dataset` reads.

        A COCO file gives the very values it holds; an `AnnotatedSet` has had its boxes clipped to the image, which
        can move a bbox AP in its last digits.

        Raises:
            EvaluationError: no COCO file.
            FileNotFoundError: no file.
        """
        if isinstance(source, Truth):
            return source
        if isinstance(source, AnnotatedSet):
            return cls.from_coco(_numbered(to_coco(source)))
        if isinstance(source, Mapping):
            return cls.from_coco(source)
        return cls.from_coco(files.read_json(str(source)), str(source))

    @property
    def content(self) -> dict[str, Any]:
        """The truth as one COCO JSON object."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def only(self, image_ids: Iterable[Any]) -> Truth:
        """The truth of these images alone."""
        wanted = set(image_ids)
        return Truth(
            [image for image in self.images if image["id"] in wanted],
            [entry for entry in self.annotations if entry["image_id"] in wanted],
            self.categories,
        )

    def with_ids_of(self, names: Mapping[int, str]) -> Truth:
        """The same truth with the category ids of a run's classes (names by id), matched by name; other categories get
        ids that the run does not use. For formats in which a class has a name and no id of its own."""
        ids = {name: number for number, name in names.items()}
        free = itertools.count(max([*names, *self.names, 0]) + 1)
        new = {number: ids[name] if name in ids else next(free) for number, name in self.names.items()}

        def renumbered(image: dict[str, Any]) -> dict[str, Any]:
            labelled = image.get("labelled_category_ids")
            return image if labelled is None else {**image, "labelled_category_ids": [new[i] for i in labelled]}

        return Truth(
            [renumbered(image) for image in self.images],
            [{**entry, "category_id": new[entry["category_id"]]} for entry in self.annotations],
            [{**category, "id": new[category["id"]]} for category in self.categories],
            self.num_not_labelled,
        )

    @cached_property
    def names(self) -> dict[int, str]:
        """Category names by id."""
        return {category["id"]: category["name"] for category in self.categories}

    @cached_property
    def labelled(self) -> dict[Any, frozenset[int]]:
        """Category ids that were looked for, by image id; an image without an entry was searched for all classes.

        From `labelled_category_ids`; or of LVIS, the classes that are there and `neg_category_ids`, without
        `not_exhaustive_category_ids`.
        """
        lvis = {image["id"] for image in self.images if image.get("neg_category_ids") is not None}
        there: dict[Any, set[int]] = defaultdict(set)
        for entry in self.annotations if lvis else ():
            if entry["image_id"] in lvis:
                there[entry["image_id"]].add(entry["category_id"])
        found: dict[Any, frozenset[int]] = {}
        for image in self.images:
            if (ids := image.get("labelled_category_ids")) is not None:
                found[image["id"]] = frozenset(ids)
            elif image["id"] in lvis:
                checked = there[image["id"]] | set(image["neg_category_ids"])
                found[image["id"]] = frozenset(checked - set(image.get("not_exhaustive_category_ids", ())))
        return found

    @cached_property
    def category_ids(self) -> np.ndarray:
        """int64 [G], the annotations' categories."""
        return np.array([entry["category_id"] for entry in self.annotations], np.int64)

    @cached_property
    def is_crowd(self) -> np.ndarray:
        """bool [G], which annotations are crowd regions: neither found nor missed."""
        return np.array([bool(entry.get("iscrowd", 0)) for entry in self.annotations], bool)

    @cached_property
    def rles(self) -> list[dict[str, Any]]:
        """The annotations' masks as COCO RLE, in order; polygons filled as pycocotools fills them."""
        filled = self._filled
        data = filled.text.tobytes()
        texts = iter([data[start:end] for start, end in itertools.pairwise(filled.offsets.tolist())])
        return [
            {"size": size, "counts": next(texts)} if alone else to_rle(entry.get("segmentation"), *size)
            for entry, alone, size in zip(
                self.annotations, filled.is_alone.tolist(), filled.sizes.tolist(), strict=True
            )
        ]

    @cached_property
    def rle_text(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The strings of `rles` in one piece (uint8), where each begins in it (int64 [G + 1]), and the masks' heights
        and widths (int64 [G, 2])."""
        filled, sizes = self._filled, self._filled.sizes.copy()
        lengths = np.zeros(len(sizes), np.int64)
        lengths[filled.is_alone] = np.diff(filled.offsets)
        others = {}
        for place in np.flatnonzero(~filled.is_alone).tolist():
            rle = to_rle(self.annotations[place].get("segmentation"), *sizes[place].tolist())
            counts = rle["counts"]
            others[place] = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
            lengths[place], sizes[place] = len(others[place]), rle["size"]
        offsets = np.append(0, np.cumsum(lengths))
        text = np.empty(offsets[-1], np.uint8)
        of_filled, done = 0, 0
        for place in [*others, len(sizes)]:  # the stretch of filled polygons before it, then its own
            stretch = int(offsets[place]) - done
            text[done : done + stretch] = filled.text[of_filled : of_filled + stretch]
            of_filled, done = of_filled + stretch, done + stretch
            if place in others:
                text[done : done + len(others[place])] = others[place]
                done += len(others[place])
        return text, offsets, sizes

    @cached_property
    def _filled(self) -> _Filled:
        size_of = {image["id"]: (image["height"], image["width"]) for image in self.images}
        sizes = np.array([size_of[entry["image_id"]] for entry in self.annotations], np.int64).reshape(-1, 2)
        return _fill([entry.get("segmentation") for entry in self.annotations], sizes)

    @cached_property
    def by_image(self) -> dict[Any, list[int]]:
        """Places in `annotations`, by image id; every image has an entry."""
        places: dict[Any, list[int]] = {image["id"]: [] for image in self.images}
        for place, annotation in enumerate(self.annotations):
            if annotation["image_id"] in places:
                places[annotation["image_id"]].append(place)
        return places


def _numbered(content: dict[str, Any]) -> dict[str, Any]:
    """The same with images numbered from 1, where a format (VOC, Cityscapes) names them instead."""
    if all(isinstance(image["id"], int) for image in content["images"]):
        return content
    number = {image["id"]: place + 1 for place, image in enumerate(content["images"])}
    return {
        **content,
        "images": [{**image, "id": number[image["id"]]} for image in content["images"]],
        "annotations": [{**entry, "image_id": number[entry["image_id"]]} for entry in content["annotations"]],
    }


@dataclass(frozen=True)
class _Filled:
    """Which annotations are one polygon of a sensible size (bool [G]), the RLE strings of those in one piece (uint8)
    and where each begins (int64), and the sizes of all annotations' images (int64 [G, 2])."""

    is_alone: np.ndarray
    text: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def _fill(segmentations: list[Any], sizes: np.ndarray) -> _Filled:
    """The masks of all segmentations that are one polygon, at once; the rest is `to_rle`'s."""
    is_alone = np.array([_is_one_polygon(one) for one in segmentations], bool)
    places = np.flatnonzero(is_alone)
    polygons = [segmentations[place][0] for place in places.tolist()]
    lengths = np.array([len(corners) for corners in polygons], np.int64)
    values = np.fromiter(itertools.chain.from_iterable(polygons), np.float64, int(lengths.sum()))
    is_far = ~(np.abs(values) <= FARTHEST_POLYGON_PX)
    if is_far.any():
        of_polygon = np.repeat(np.arange(len(lengths)), lengths)
        far = np.unique(of_polygon[is_far])
        is_alone[places[far]] = False
        values, lengths = values[~np.isin(of_polygon, far)], np.delete(lengths, far)
    if not len(lengths):
        return _Filled(is_alone, np.zeros(0, np.uint8), np.zeros(1, np.int64), sizes)
    from pipeline.masks import polygon_kernel

    starts = np.append(0, np.cumsum(lengths // 2))
    heights, widths = (sizes[is_alone, axis] for axis in (0, 1))
    text, ends = polygon_kernel.fill(values.reshape(-1, 2), starts, heights, widths)
    return _Filled(is_alone, text, np.append(0, ends), sizes)


def _is_one_polygon(segmentation: Any) -> bool:
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return False
    corners = segmentation[0]
    return isinstance(corners, list) and len(corners) >= 6 and len(corners) % 2 == 0


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, compressed or plain RLE) as compressed RLE of its image.

    Raises:
        KeyError: there is no segmentation (as pycocotools raises).
    """
    from pycocotools import mask as coco_mask

    if segmentation is None:
        raise KeyError("segmentation")
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], str | bytes):
            return dict(segmentation)
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    if not segmentation:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


@dataclass(frozen=True)
class ImageMatch:
    """Which image of a run shows which image of the truth.

    Attributes:
        truth_id: image id of the truth for each matched `image_id` of the run.
        missing: file names of the truth that the run does not have.
        extra: number of images of the run that the truth does not have.
    """

    truth_id: dict[str, Any]
    missing: tuple[str, ...]
    extra: int


def match_images(image_ids: Iterable[str], images: Sequence[Mapping[str, Any]]) -> ImageMatch:
    """Matches a run's `image_id` with the truth's `file_name`: the whole name first, then the base name.

    Args:
        image_ids: the run's, each once.
        images: COCO image entries.

    Raises:
        EvaluationError: a base name that several images share on either side, where the whole name decides nothing;
            the message lists the clash. Or not one image in common.
    """
    keys = list(dict.fromkeys(image_ids))
    known = set(keys)
    truth_id: dict[str, Any] = {}
    rest = []
    for image in images:
        if image["file_name"] in known:
            truth_id[image["file_name"]] = image["id"]
        else:
            rest.append(image)
    free: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        if key not in truth_id:
            free[_base(key)].append(key)
    wanted: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for image in rest:
        wanted[_base(image["file_name"])].append(image)
    missing = []
    for base, entries in wanted.items():
        candidates = free.get(base, [])
        if not candidates:
            missing += [entry["file_name"] for entry in entries]
        elif len(candidates) > 1 or len(entries) > 1:
            raise EvaluationError(
                f"images cannot be matched by base name: {base!r} is {_listing(candidates)} in the run and "
                f"{_listing([entry['file_name'] for entry in entries])} in the ground truth"
            )
        else:
            truth_id[candidates[0]] = entries[0]["id"]
    if keys and images and not truth_id:
        raise EvaluationError(
            f"the run and the ground truth have no image in common: the run has e.g. {keys[0]!r}, the ground truth "
            f"{images[0]['file_name']!r}"
        )
    return ImageMatch(truth_id, tuple(missing), len(keys) - len(truth_id))


def check_categories(run: Mapping[int, str], truth: Mapping[int, str]) -> None:
    """Checks that a category id means the same class in the run and in the truth.

    Raises:
        EvaluationError: it does not, or the same name has another id.
    """
    ids = {name: number for number, name in truth.items()}
    clashes = [
        f"{n} is {run[n]!r} in the run and {truth[n]!r} in the ground truth"
        for n in run
        if n in truth and run[n] != truth[n]
    ]
    clashes += [
        f"{name!r} is {number} in the run and {ids[name]} in the ground truth"
        for number, name in run.items()
        if number not in truth and name in ids
    ]
    if clashes:
        raise EvaluationError("category ids do not agree: " + "; ".join(clashes[:10]))


def _base(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
