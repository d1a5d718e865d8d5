"""Gallery of a report: photos as JPEG, and outlines of what was found and annotated on them, as the page draws them."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.evaluation.ground_truth import Truth
from pipeline.masks.contours import mask_to_part_polygons
from pipeline.masks.rle import decode_rle
from pipeline.results.errors import NOT_COUNTED, RunErrors, Yardstick, pair_instances
from pipeline.results.render import color_of, color_of_instance, open_photo, to_css
from pipeline.runs import AnyRun
from pipeline.schema import OK
from pipeline.storage.files import Location
from pipeline.tables import decode_mask, load_images, load_instances

MAX_BYTES = 18_000_000  # of photos and outlines, well below 20 MB for the whole file
MAX_DRAWN = 40  # instances on one photo: those with the best scores
MAX_DRAWN_BESIDE_TRUTH = 200
EXAMPLES = 6  # photos of each class for the gallery to choose from
_PHOTO_PX = 720
_PHOTO_QUALITY = 74
_COLUMNS = ["image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2", "area_px", "rle_counts"]
_COLUMNS += ["image_height", "image_width"]

Entry = dict[str, object]
"""A photo or an outline as the page's script takes it."""


@dataclass(frozen=True)
class Side:
    """A run on the page: what it is called there, and its errors where there is ground truth."""

    name: str
    run: AnyRun
    errors: RunErrors | None = None


@dataclass
class Gallery:
    """The photos of a page.

    Attributes:
        pictures: each with `id`, `w`, `h`, `size`, `src` and lists of outlines: `found`, `other` (of a second run; None
            where it has not the photo), `truth`; and `undrawn`, the number of objects that were too many.
        unreadable: name and reason of photos that cannot be shown.
        is_cut: whether photos were left out because the file would grow too large.
    """

    pictures: list[Entry] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    is_cut: bool = False

    def fill(self, names: Iterable[str], show: Callable[[str], Entry]) -> None:
        """Adds the entry that `show` gives of each name, until they take MAX_BYTES.

        A photo of which it raises OSError or ValueError is among `unreadable`.
        """
        size = 0
        for name in names:
            try:
                entry = show(name)
            except (OSError, ValueError) as error:  # it is gone, or has changed
                self.unreadable.append((name, str(error)))
                continue
            size += len(json.dumps(entry))
            if size > MAX_BYTES:
                self.is_cut = True
                return
            self.pictures.append(entry)


class Canvas:
    """A photo as the page shows it, and outlines in its pixels."""

    def __init__(self, name: str, photo: Image.Image) -> None:
        """Takes an RGB photo in its original size, and shrinks it in place."""
        size = f"{photo.width} x {photo.height}"
        photo.thumbnail((_PHOTO_PX, _PHOTO_PX), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=_PHOTO_QUALITY, optimize=True)
        self.width, self.height = photo.size
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.num_undrawn = 0  # objects of the photo that are too many to draw
        self.entry: Entry = {"id": name, "w": self.width, "h": self.height, "size": size, "src": source}

    def whole_entry(self) -> Entry:
        """The photo with what was drawn on it."""
        return self.entry | ({"undrawn": self.num_undrawn} if self.num_undrawn else {})

    def outline(
        self, category: str, number: int, box: Sequence[float], mask: np.ndarray, area: float, **others: object
    ) -> Entry:
        """An object as the page draws it.

        Args:
            number: from 0, of its own colour.
            box: XYXY in pixels of the mask.
            mask: uint8 [H, W] of 0 and 1, of the original image's size.
            area: in square pixels.
            others: added as they are.
        """
        across, down = self.width / mask.shape[1], self.height / mask.shape[0]
        polygons = mask_to_part_polygons(mask, tolerance_px=0.7 / max(across, down))
        scales = (across, down)
        return {
            "c": category,
            "a": int(area),
            "k": to_css(color_of(category)),
            "n": to_css(color_of_instance(number)),
            "b": [round(float(value) * scales[at % 2], 1) for at, value in enumerate(box)],
            "p": [[round(value * scales[at % 2], 1) for at, value in enumerate(polygon)] for polygon in polygons],
            **others,
        }


def build_gallery(sides: Sequence[Side], chosen: pd.DataFrame, yardstick: Yardstick | None) -> Gallery:
    """The gallery of one run, or of two side by side.

    Args:
        sides: one or two; the photos are those of the first.
        chosen: rows of its images table, in the order of the page: `image_id`, `uri`, `height`, `width`.
        yardstick: for the errors of the sides; None without ground truth.
    """
    if not len(chosen):
        return Gallery()
    first = sides[0]
    truth = None
    if yardstick is not None and first.errors is not None:
        truth_ids = [first.errors.truth_id[name] for name in chosen["image_id"]]
        truth = yardstick.truth.only(np.array(truth_ids, np.int64))
    found = [_Found(side, first, chosen["image_id"].tolist()) for side in sides]
    rows = {row.image_id: row for row in chosen.itertuples()}

    def show(name: str) -> Entry:
        row: Any = rows[name]
        photo = open_photo(Location(row.uri, first.run.storage.settings))
        if (photo.height, photo.width) != (row.height, row.width):
            raise ValueError(
                f"the photo is {photo.height} x {photo.width}, but {row.height:.0f} x {row.width:.0f} was segmented"
            )
        canvas = Canvas(name, photo)
        part = None
        if truth is not None and first.errors is not None:
            part = truth.only(np.array([first.errors.truth_id[name]], np.int64))
        for key, each in zip(("found", "other"), found):
            canvas.entry[key] = each.outlines(canvas, name, part, yardstick)
        if part is not None:
            regions = part.is_region(yardstick.iou_type if yardstick is not None else "segm")
            canvas.entry["truth"] = _truth_outlines(canvas, part, regions, [each.scores for each in found])
        return canvas.whole_entry()

    gallery = Gallery()
    gallery.fill(chosen["image_id"], show)
    return gallery


class _Found:
    """What one side found on the photos of the page; they may have other ids in its run."""

    def __init__(self, side: Side, first: Side, names: Sequence[str]) -> None:
        self.own_name = {name: name for name in names}
        if side.errors is not None and first.errors is not None and side is not first:
            own = {number: name for name, number in side.errors.truth_id.items()}
            self.own_name = {name: own.get(first.errors.truth_id[name], name) for name in names}
        wanted = [("image_id", "in", list(self.own_name.values()))]
        images = load_images(side.run, ["image_id", "status"], wanted)
        self.images = {name: rows for name, rows in images.groupby("image_id")}
        instances = load_instances(side.run, _COLUMNS, wanted)
        self.instances = {name: rows.reset_index(drop=True) for name, rows in instances.groupby("image_id")}
        self.none = instances.iloc[:0]
        self.scores: np.ndarray | None = None  # of `Pairs`, on the photo that was drawn last

    def outlines(
        self, canvas: Canvas, name: str, truth: Truth | None, yardstick: Yardstick | None
    ) -> list[Entry] | None:
        """The instances of a photo, best score first; None where the run has not segmented it."""
        own = self.own_name[name]
        images = self.images.get(own)
        self.scores = None
        if images is None or images["status"].iloc[0] != OK:
            return None
        instances = self.instances.get(own, self.none)
        best = instances.nlargest(MAX_DRAWN if truth is None else MAX_DRAWN_BESIDE_TRUTH, "score")
        canvas.num_undrawn += len(instances) - len(best)
        truths, num_objects = None, 0
        if truth is not None and yardstick is not None:
            pairs = pair_instances(instances, images, truth, yardstick)
            truths, num_objects, self.scores = pairs.truths, len(truth.annotations), pairs.scores
        drawn = []
        for rank, row in enumerate(best.itertuples()):
            paired = None if truths is None else int(truths[row.Index])
            number = rank if paired is None else paired if paired >= 0 else num_objects + rank
            others = {} if paired is None else {"e": "" if paired == NOT_COUNTED else "f" if paired < 0 else "t"}
            box = (row.x1, row.y1, row.x2, row.y2)
            mask = decode_mask(row)
            drawn.append(canvas.outline(row.category, number, box, mask, row.area_px, s=_below(row.score), **others))
        return drawn


def _truth_outlines(
    canvas: Canvas, truth: Truth, regions: np.ndarray, scores: Sequence[np.ndarray | None]
) -> list[Entry]:
    """The annotations of one image.

    `m` has, for each side, the score of the detection that found the object, None for none; a region that counts
    neither way has no `m`.
    """
    annotations, (height, width) = truth.annotations, truth.image_sizes[0].tolist()
    drawn = []
    canvas.num_undrawn += max(len(annotations) - MAX_DRAWN_BESIDE_TRUTH, 0)
    for index in range(min(len(annotations), MAX_DRAWN_BESIDE_TRUTH)):
        x, y, across, down = annotations.boxes[index].tolist()
        mask = decode_rle(truth.rles[index], height, width)
        found_at = [None if side is None or np.isnan(side[index]) else _below(side[index]) for side in scores]
        category = truth.names[int(annotations.category_ids[index])]
        others = {} if regions[index] else {"m": found_at}
        drawn.append(canvas.outline(category, index, (x, y, x + across, y + down), mask, truth.areas[index], **others))
    return drawn


def choose_images(images: pd.DataFrame, examples: pd.DataFrame | None, num: int) -> pd.DataFrame:
    """Chooses images for the gallery.

    Half of them are chosen so that each class is seen as evenly as its photos allow, the others in order of `draw`. The
    two halves alternate, so that the first rows, however many, are such a choice too.

    Args:
        images: rows with `image_id` and `draw`, a random number.
        examples: photos of each class: `category`, `image_id`, `draw`; None for a run without instances.
        num: number of rows to choose, at most.

    Returns:
        The chosen rows of `images`.
    """
    chosen: list[str] = []
    if examples is not None and len(examples):
        rounds = examples.assign(round=examples.groupby("category").cumcount()).sort_values(["round", "draw"])
        chosen = list(dict.fromkeys(rounds["image_id"]))[: num // 2]
    for_classes = images.set_index("image_id", drop=False).loc[chosen].reset_index(drop=True)
    rest = images[~images["image_id"].isin(chosen)].nsmallest(max(num - len(chosen), 0), "draw")
    return _in_turns(for_classes, rest)


def choose_worst(images: pd.DataFrame, errors: Sequence[RunErrors], truth: Truth, num: int) -> pd.DataFrame:
    """Chooses the images with the most errors: false positives + missed objects; of equal ones in order of `draw`.

    Of two runs their errors are added. Every other image is then one of those on which they differ most.

    Args:
        images: rows with `image_id`, which the truth has, and `draw`, a random number.
        errors: of each run; the images are those of the first.
        num: number of rows to choose, at most.

    Returns:
        The chosen rows of `images`.
    """
    truth_ids = images["image_id"].map(errors[0].truth_id).to_numpy(np.int64)
    at = truth.index_of(truth_ids)
    counts = [(each.false + each.missed)[at] for each in errors]
    images = images.assign(errors=np.sum(counts, axis=0), difference=np.abs(counts[0] - counts[-1]))
    worst = images.sort_values(["errors", "draw"], ascending=[False, True]).head(num)
    if len(errors) == 1:
        return worst.reset_index(drop=True)
    differing = images[images["difference"] > 0].sort_values(["difference", "draw"], ascending=[False, True])
    differing = differing.head(num // 2)
    rest = worst[~worst["image_id"].isin(differing["image_id"])].head(num - len(differing))
    return _in_turns(rest, differing)


def _in_turns(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The rows of two tables, one of each in turn, as long as there are."""
    turns = [part.assign(turn=range(len(part))) for part in (first, second)]
    return pd.concat(turns).sort_values("turn", kind="stable", ignore_index=True).drop(columns="turn")


def _below(score: float) -> float:
    """A score with six digits, cut off: it reaches the same thresholds."""
    return math.floor(float(score) * 1e6) / 1e6
