"""Ground truth as COCO annotations (`Truth`), and the matching of a run's images and categories with it."""

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
    """A run and a ground truth that cannot be compared. The message says why."""


@dataclass(frozen=True)
class Truth:
    """Annotated images as COCO's own evaluation reads them: nothing is rounded, clipped or reordered.

    Attributes:
        images: COCO image entries (`id`, `file_name`, `height`, `width`).
        annotations: COCO annotations (`bbox` is XYWH in pixels of the image).
        categories: COCO categories.
        num_not_labelled: annotations that were left out, because their class was not annotated on their image.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    num_not_labelled: int = 0

    @classmethod
    def from_coco(cls, content: Mapping[str, Any], where: str = "the ground truth") -> Truth:
        """The truth of a COCO JSON object.

        Where an image says which classes were annotated on it (see `labelled`), annotations of other classes are left
        out. Some of those objects are annotated and some are not, so they count neither as found nor as missed.

        Args:
            where: what error messages call the object.

        Raises:
            EvaluationError: it is no COCO JSON object, or two images or two categories have the same id.
        """
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
                raise EvaluationError(f"{where} has no list {key!r}, so it is no COCO annotation file")
        for key in ("images", "categories"):
            ids = [entry["id"] for entry in content[key]]
            if len(set(ids)) < len(ids):
                repeated = next(i for n, i in enumerate(ids) if i in ids[:n])
                raise EvaluationError(f"{where} names {key} id {repeated!r} twice")
        whole = cls(content["images"], content["annotations"], content["categories"])
        if not (labelled := whole.labelled):
            return whole
        kept = [
            entry
            for entry in whole.annotations
            if (category_ids := labelled.get(entry["image_id"])) is None or entry["category_id"] in category_ids
        ]
        return cls(whole.images, kept, whole.categories, len(whole.annotations) - len(kept))

    @classmethod
    def load(cls, source: Truth | AnnotatedSet | Mapping[str, Any] | str) -> Truth:
        """The truth of a COCO JSON file (its URI) or object, or of any set that `pipeline.dataset` reads.

        A COCO file gives exactly the values it holds. An `AnnotatedSet` has its boxes clipped to the image, which can
        change a bbox AP in its last digits.

        Raises:
            EvaluationError: it is no COCO file.
            FileNotFoundError: there is no such file.
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
        """The truth of these images alone, with all categories."""
        kept_ids = set(image_ids)
        return Truth(
            [image for image in self.images if image["id"] in kept_ids],
            [entry for entry in self.annotations if entry["image_id"] in kept_ids],
            self.categories,
        )

    def with_ids_of(self, names: Mapping[int, str]) -> Truth:
        """The same truth with the category ids of a run's classes, matched by name.

        For formats in which a class has a name and no id of its own.

        Args:
            names: the run's class names by id. Categories that it lacks get ids that neither side uses.
        """
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
        """Ids of the categories that were annotated on an image, by image id. On an image without an entry all were.

        They are `labelled_category_ids` of the image. For LVIS they are the categories of its annotations and its
        `neg_category_ids`, without its `not_exhaustive_category_ids`.
        """
        lvis_images = {image["id"] for image in self.images if image.get("neg_category_ids") is not None}
        annotated: dict[Any, set[int]] = defaultdict(set)
        for entry in self.annotations if lvis_images else ():
            if entry["image_id"] in lvis_images:
                annotated[entry["image_id"]].add(entry["category_id"])
        labelled: dict[Any, frozenset[int]] = {}
        for image in self.images:
            if (ids := image.get("labelled_category_ids")) is not None:
                labelled[image["id"]] = frozenset(ids)
            elif image["id"] in lvis_images:
                checked = annotated[image["id"]] | set(image["neg_category_ids"])
                labelled[image["id"]] = frozenset(checked - set(image.get("not_exhaustive_category_ids", ())))
        return labelled

    @cached_property
    def category_ids(self) -> np.ndarray:
        """int64 [G], the category id of each annotation."""
        return np.array([entry["category_id"] for entry in self.annotations], np.int64)

    @cached_property
    def is_crowd(self) -> np.ndarray:
        """bool [G], whether each annotation is a crowd region, which counts neither as found nor as missed."""
        return np.array([bool(entry.get("iscrowd", 0)) for entry in self.annotations], bool)

    @cached_property
    def rles(self) -> list[dict[str, Any]]:
        """The annotations' masks as COCO RLE, in order; polygons filled as pycocotools fills them."""
        filled = self._filled
        data = filled.text.tobytes()
        texts = iter([data[start:end] for start, end in itertools.pairwise(filled.offsets.tolist())])
        return [
            {"size": size, "counts": next(texts)} if is_filled else to_rle(entry.get("segmentation"), *size)
            for entry, is_filled, size in zip(
                self.annotations, filled.is_filled.tolist(), filled.sizes.tolist(), strict=True
            )
        ]

    @cached_property
    def rle_text(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The RLE strings of all annotations, concatenated, for the compiled kernels.

        Returns:
            text: uint8, the characters of `rles`, one string after the other.
            offsets: int64 [G + 1], where each string begins in `text`.
            sizes: int64 [G, 2], heights and widths of the masks.
        """
        filled, sizes = self._filled, self._filled.sizes.copy()
        lengths = np.zeros(len(sizes), np.int64)
        lengths[filled.is_filled] = np.diff(filled.offsets)
        own_text = {}  # of annotations that are not in `filled`, by index
        for index in np.flatnonzero(~filled.is_filled).tolist():
            rle = to_rle(self.annotations[index].get("segmentation"), *sizes[index].tolist())
            counts = rle["counts"]
            own_text[index] = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
            lengths[index], sizes[index] = len(own_text[index]), rle["size"]
        offsets = np.append(0, np.cumsum(lengths))
        text = np.empty(offsets[-1], np.uint8)
        read, written = 0, 0
        for index in [*own_text, len(sizes)]:  # the filled polygons before it in one copy, then its own string
            stretch = int(offsets[index]) - written
            text[written : written + stretch] = filled.text[read : read + stretch]
            read, written = read + stretch, written + stretch
            if index in own_text:
                text[written : written + len(own_text[index])] = own_text[index]
                written += len(own_text[index])
        return text, offsets, sizes

    @cached_property
    def _filled(self) -> _FilledPolygons:
        size_of = {image["id"]: (image["height"], image["width"]) for image in self.images}
        sizes = np.array([size_of[entry["image_id"]] for entry in self.annotations], np.int64).reshape(-1, 2)
        return _fill_polygons([entry.get("segmentation") for entry in self.annotations], sizes)

    @cached_property
    def by_image(self) -> dict[Any, list[int]]:
        """Indices into `annotations`, by image id; every image has an entry."""
        indices: dict[Any, list[int]] = {image["id"]: [] for image in self.images}
        for index, annotation in enumerate(self.annotations):
            if annotation["image_id"] in indices:
                indices[annotation["image_id"]].append(index)
        return indices


def _numbered(content: dict[str, Any]) -> dict[str, Any]:
    """The same content with images numbered from 1, where a format (VOC, Cityscapes) has names instead of numbers."""
    if all(isinstance(image["id"], int) for image in content["images"]):
        return content
    number = {image["id"]: index + 1 for index, image in enumerate(content["images"])}
    return {
        **content,
        "images": [{**image, "id": number[image["id"]]} for image in content["images"]],
        "annotations": [{**entry, "image_id": number[entry["image_id"]]} for entry in content["annotations"]],
    }


@dataclass(frozen=True)
class _FilledPolygons:
    """Masks of the annotations that are one polygon each.

    Attributes:
        is_filled: bool [G], whether the annotation is one polygon within `FARTHEST_POLYGON_PX`.
        text: uint8, the RLE strings of those, concatenated.
        offsets: int64, where each begins in `text`, and where the last one ends.
        sizes: int64 [G, 2], heights and widths of all annotations' images.
    """

    is_filled: np.ndarray
    text: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def _fill_polygons(segmentations: list[Any], sizes: np.ndarray) -> _FilledPolygons:
    """Fills all segmentations that are one polygon, in one call; the others are left to `to_rle`."""
    is_filled = np.array([_is_one_polygon(segmentation) for segmentation in segmentations], bool)
    indices = np.flatnonzero(is_filled)
    polygons = [segmentations[index][0] for index in indices.tolist()]
    lengths = np.array([len(corners) for corners in polygons], np.int64)
    values = np.fromiter(itertools.chain.from_iterable(polygons), np.float64, int(lengths.sum()))
    is_far = ~(np.abs(values) <= FARTHEST_POLYGON_PX)
    if is_far.any():
        of_polygon = np.repeat(np.arange(len(lengths)), lengths)
        far = np.unique(of_polygon[is_far])
        is_filled[indices[far]] = False
        values, lengths = values[~np.isin(of_polygon, far)], np.delete(lengths, far)
    if not len(lengths):
        return _FilledPolygons(is_filled, np.zeros(0, np.uint8), np.zeros(1, np.int64), sizes)
    from pipeline.masks import polygon_kernel

    starts = np.append(0, np.cumsum(lengths // 2))
    heights, widths = (sizes[is_filled, axis] for axis in (0, 1))
    text, ends = polygon_kernel.fill(values.reshape(-1, 2), starts, heights, widths)
    return _FilledPolygons(is_filled, text, np.append(0, ends), sizes)


def _is_one_polygon(segmentation: Any) -> bool:
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return False
    corners = segmentation[0]
    return isinstance(corners, list) and len(corners) >= 6 and len(corners) % 2 == 0


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, compressed or uncompressed RLE) as compressed RLE of its image.

    Args:
        height, width: of the image, in pixels.

    Returns:
        `size` and `counts`; an empty list of polygons gives an empty mask.

    Raises:
        KeyError: the segmentation is None (pycocotools raises the same).
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
    """Images of a run matched with images of the truth.

    Attributes:
        truth_id: the truth's image id by the run's `image_id`, for each matched image.
        missing: file names of the truth that the run does not have.
        extra: number of images of the run that the truth does not have.
    """

    truth_id: dict[str, Any]
    missing: tuple[str, ...]
    extra: int


def match_images(image_ids: Iterable[str], images: Sequence[Mapping[str, Any]]) -> ImageMatch:
    """Matches a run's `image_id` with the truth's `file_name`: by the whole name, or else by the base name.

    Args:
        image_ids: of the run; repetitions are ignored.
        images: COCO image entries.

    Raises:
        EvaluationError: several images of one side share a base name and have no whole name in common with the other
            side (the message lists them), or the two sides have no image in common.
    """
    keys = list(dict.fromkeys(image_ids))
    run_keys = set(keys)
    truth_id: dict[str, Any] = {}
    unmatched: dict[str, list[Mapping[str, Any]]] = defaultdict(list)  # of the truth, by base name
    for image in images:
        if image["file_name"] in run_keys:
            truth_id[image["file_name"]] = image["id"]
        else:
            unmatched[_base_name(image["file_name"])].append(image)
    keys_of: dict[str, list[str]] = defaultdict(list)  # unmatched ones of the run, by base name
    for key in keys:
        if key not in truth_id:
            keys_of[_base_name(key)].append(key)
    missing = []
    for base, entries in unmatched.items():
        candidates = keys_of.get(base, [])
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

    Args:
        run, truth: category names by id. Categories that only one side has are no clash.

    Raises:
        EvaluationError: an id has two names, or a name has two ids.
    """
    ids = {name: number for number, name in truth.items()}
    clashes = [
        f"{number} is {name!r} in the run and {truth[number]!r} in the ground truth"
        for number, name in run.items()
        if number in truth and name != truth[number]
    ]
    clashes += [
        f"{name!r} is {number} in the run and {ids[name]} in the ground truth"
        for number, name in run.items()
        if number not in truth and name in ids
    ]
    if clashes:
        raise EvaluationError("category ids do not agree: " + "; ".join(clashes[:10]))


def _base_name(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
