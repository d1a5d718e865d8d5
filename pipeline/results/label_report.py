"""HTML page of labels: an annotated data set's objects on its photos, and the faults that `check_data` found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.results.gallery import EXAMPLES, MAX_DRAWN_BESIDE_TRUTH, Canvas, Entry, Gallery, choose_images
from pipeline.results.page import Page
from pipeline.results.render import color_of, to_css
from pipeline.storage.uri import base_name

if TYPE_CHECKING:  # the room of data sets is not imported here; what is of it is handed over
    from pipeline.dataset.check import DataReport
    from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, Instance

IGNORED = "ignored region"


def build_label_report(
    report: DataReport,
    load_photo: Callable[[AnnotatedImage], np.ndarray],
    *,
    day: date | None = None,
    num_images: int = 120,
) -> str:
    """The page's HTML: counts, classes, faults, and a gallery of photos with their labels, those with faults first.

    Args:
        report: of `check_data`. Annotations that were refused have no photos here.
        load_photo: gives a photo as uint8 RGB [H, W, 3], or raises ValueError where it cannot be shown.
        day: behind the title.
        num_images: photos, at most; fewer where the file would grow too large.
    """
    most = max(report.class_counts.values(), default=1) or 1
    page = Page(
        labels={
            "facts": {"annotations": report.uri, "format": report.format},
            "totals": [
                (report.num_images, "images"),
                (report.num_instances, "objects"),
                (report.num_negatives, "images without any"),
            ],
            "classes": [
                (name, count, count / most, to_css(color_of(name)))
                for name, count in sorted(report.class_counts.items(), key=lambda item: -item[1])
            ],
            "findings": report.findings,
            "notes": report.notes,
            "verdict": "Training would take this set." if report.ok else "Training refuses this set for its errors.",
        }
    )
    if report.annotated is not None and len(report.annotated):
        _show(page, report, report.annotated, load_photo, num_images)
    return page.render(f"Labels of {base_name(report.uri.rstrip('/')) or report.uri}", day)


def _show(
    page: Page,
    report: DataReport,
    annotated: AnnotatedSet,
    load_photo: Callable[[AnnotatedImage], np.ndarray],
    num_images: int,
) -> None:
    """Puts the photos on the page."""
    names = [category.name for category in annotated.categories]
    faults: defaultdict[int, list[tuple[str, Instance | None]]] = defaultdict(list)  # by the identity of the image
    for finding in report.findings:
        for example in finding.examples:
            if example.image is not None:
                faults[id(example.image)].append((f"{finding.kind}: {example.detail}", example.instance))
    # Numbers, since a photo may be listed twice.
    images = {str(number): image for number, image in enumerate(annotated.images)}

    def show(number: str) -> Entry:
        image = images[number]
        canvas = Canvas(image.file_name, Image.fromarray(load_photo(image)))
        of_image = faults[id(image)]
        drawn = []
        canvas.num_undrawn = max(len(image.instances) - MAX_DRAWN_BESIDE_TRUTH, 0)
        for at, instance in enumerate(image.instances[:MAX_DRAWN_BESIDE_TRUTH]):
            own = [fault for fault, culprit in of_image if culprit is instance]
            others: Entry = ({"fault": own[0]} if own else {}) | ({} if instance.iscrowd else {"m": []})
            category = names[instance.label - 1] if instance.label else IGNORED
            mask = instance.mask(image.height, image.width)
            drawn.append(canvas.outline(category, at, instance.box, mask, instance.area, **others))
        note = "; ".join(dict.fromkeys(fault for fault, _ in of_image))
        return canvas.whole_entry() | {"truth": drawn} | ({"note": note} if note else {})

    gallery = Gallery()
    chosen = _choose(images, names, [number for number, image in images.items() if id(image) in faults], num_images)
    gallery.fill(chosen, show)
    gallery.unreadable = [(images[number].file_name, reason) for number, reason in gallery.unreadable]
    num_shown = len(gallery.pictures)
    of, choice = f"All {num_shown:,} images", ""
    if num_shown < len(annotated):
        of, choice = f"{num_shown:,} of {len(annotated):,} images", ", then half so that every class is seen"
    said = f"{of}: first those that are examples of a fault{choice}."
    page.show(gallery, sides=[], said=said)


def _choose(images: dict[str, AnnotatedImage], names: list[str], faulty: list[str], num_images: int) -> list[str]:
    """The photos with a fault, then a choice of the others."""
    frame = pd.DataFrame({"image_id": list(images)})
    file_names = pd.Series([image.file_name for image in images.values()], dtype="str")
    frame["draw"] = pd.util.hash_pandas_object(file_names, index=False).to_numpy()
    frame = frame[~frame["image_id"].isin(faulty)].sort_values("draw")
    seen: defaultdict[int, list[str]] = defaultdict(list)
    for number in frame["image_id"]:
        for label in {instance.label for instance in images[number].instances}:
            if len(seen[label]) < EXAMPLES:
                seen[label].append(number)
    pairs = [(label, number) for label, numbers in seen.items() for number in numbers]
    examples = pd.DataFrame(pairs, columns=["category", "image_id"])
    examples["draw"] = examples["image_id"].map(frame.set_index("image_id")["draw"])
    others = choose_images(frame, examples, max(num_images - len(faulty), 0))
    return [*faulty[:num_images], *others["image_id"]]
