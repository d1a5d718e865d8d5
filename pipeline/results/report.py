"""The HTML report of one run or two, in one file: totals, failures, errors against truth, curves, a gallery.

The file holds everything it shows, and a content security policy that forbids the browser to load anything else. The
gallery holds photos and masks separately; the page draws the masks' outlines, so filters act on single instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.results.charts import bar_chart, line_chart
from pipeline.results.errors import Counts, RunErrors, Yardstick, count_errors
from pipeline.results.figures import evaluation_parts, shown
from pipeline.results.gallery import EXAMPLES, Gallery, Side, build_gallery, choose_images, choose_worst
from pipeline.results.page import Page, Part
from pipeline.results.render import color_of, to_css
from pipeline.results.training_report import TrainingRecord, training_parts
from pipeline.runs import AnyRun, Runs, RunSource, open_runs, refined_by
from pipeline.schema import OK, STATUSES
from pipeline.storage.uri import base_name
from pipeline.tables import iter_instances, load_images

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import MetricsJson

_EXAMPLES = 6  # images listed for each failure
_SCORE_EDGES = np.linspace(0, 1, 21)
_SIDE_EDGES = np.linspace(0, 12, 25)  # log2 of the square root of the area
_CONFIDENT = 0.5  # the score from which an instance is counted as confident
_MAX_CURVES = 60  # classes whose curves are on the page, those with most objects; they bound its size
_ERROR_COLUMNS = (
    "objects", "true positives", "false positives", "missed", "precision", "recall", "F1", "best F1", "at score",
)  # fmt: skip


@dataclass
class _Totals:
    """Counts over all instances, gathered batch by batch in constant memory.

    Attributes:
        by_class: instances of each class.
        confident_by_class: those with a score of at least `_CONFIDENT`.
        scores, sides: int64, histograms over `_SCORE_EDGES` and `_SIDE_EDGES`.
        examples: `category`, `image_id`, `draw`: up to `EXAMPLES` photos for each class.
    """

    by_class: Counter[str] = field(default_factory=Counter)
    confident_by_class: Counter[str] = field(default_factory=Counter)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(len(_SCORE_EDGES) - 1, np.int64))
    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(_SIDE_EDGES) - 1, np.int64))
    examples: pd.DataFrame | None = None

    def add(self, frame: pd.DataFrame, draw: pd.Series) -> None:
        """Adds a batch of instances; `draw` is each image's random number, by `image_id`."""
        confident = frame[frame["score"] >= _CONFIDENT]
        self.by_class.update(frame["category"].value_counts().to_dict())
        self.confident_by_class.update(confident["category"].value_counts().to_dict())
        self.scores += np.histogram(frame["score"], _SCORE_EDGES)[0]
        side = np.log2(np.sqrt(np.maximum(frame["area_px"].to_numpy(np.float64), 1)))
        self.sides += np.histogram(np.clip(side, 0, _SIDE_EDGES[-1]), _SIDE_EDGES)[0]
        pairs = confident[["category", "image_id"]].drop_duplicates()
        pairs = pairs.assign(draw=pairs["image_id"].map(draw))
        candidates = pairs if self.examples is None else pd.concat([self.examples, pairs])
        candidates = candidates.drop_duplicates(["category", "image_id"]).sort_values("draw")
        self.examples = candidates.groupby("category", sort=False).head(EXAMPLES)

    @cached_property
    def num_instances(self) -> int:
        return sum(self.by_class.values())


@dataclass(frozen=True)
class Sample:
    """Which photos the gallery shows: at most so many; the choice depends on the run and the seed alone."""

    num_images: int = 120
    seed: int = 0


def build_report(
    run: RunSource | None = None,
    *,
    run_b: RunSource | None = None,
    yardstick: Yardstick | None = None,
    evaluation: MetricsJson | None = None,
    training: TrainingRecord | None = None,
    unfinished: str = "",
    title: str | None = None,
    day: date | None = None,
    sample: Sample = Sample(),
) -> str:
    """The report's HTML.

    Args:
        run: a bulk run or its URI, or several (see `open_runs`); None for a report of a training alone.
        run_b: a second one, whose detections on the photos of the first are shown beside them.
        yardstick: ground truth: the page then shows it beside what was found, marks false positives and missed objects,
            has the figures of each class, and the photos with the most errors. Without it half of the photos are chosen
            so that each class is seen, the rest at random.
        evaluation: `Metrics.to_dict()`, for AP tables and precision-recall curves.
        training: a training, whose validation the run may be.
        unfinished: what the page says of a run that is not sealed, such as how many of its shards are committed.
        title: of the page; None: made of the run's name, model and data.
        day: behind the title.
        sample: the photos; fewer where the file would grow too large.

    Raises:
        RunError: there is no such run.
        EvaluationError: a run does not fit the ground truth.
        ValueError: neither a run nor a training.
    """
    if run is None and training is None:
        raise ValueError("a report needs a run or a training")
    page = Page(unfinished)
    if run is not None:
        runs = [open_runs(each) for each in (run, run_b) if each is not None]
        names = ["A", "B"] if len(runs) == 2 else [""]
        sides = [
            Side(name, each, None if yardstick is None else count_errors(each, yardstick))
            for name, each in zip(names, runs, strict=True)
        ]
        title = title or _title(runs)
        _show_runs(page, sides, yardstick, sample)
        if not unfinished and not all(each.sealed for each in runs):
            page.unfinished = "only committed shards are shown"
    page.evaluation = None if evaluation is None else evaluation_parts(evaluation)
    page.training = None if training is None else training_parts(training)
    return page.render(title or "Training", day)


def _title(runs: Sequence[AnyRun]) -> str:
    """The runs by name, their model and data: "night-3: Mask R-CNN resnet50 fpn on photos"."""
    spec = runs[0].spec
    network = " ".join(str(spec.model.spec[name]) for name in ("backbone", "neck") if name in spec.model.spec)
    names = " and ".join(base_name(run.storage.uri.rstrip("/")) for run in runs)
    several = f" ({len(runs[0].runs)} runs)" if isinstance(runs[0], Runs) else ""
    data = base_name(spec.input.uri.rstrip("/")) or "images"
    return f"{names}{several}: Mask R-CNN {network} on {data}".replace("  ", " ")


def _show_runs(page: Page, sides: Sequence[Side], yardstick: Yardstick | None, sample: Sample) -> None:
    """Puts totals, errors and photos of the runs on the page."""
    run = sides[0].run
    images = load_images(run, ["image_id", "uri", "status", "error", "height", "width", "num_instances"])
    # A random number for each image, computed from its id and the seed: samples stay the same as a run grows.
    key = f"{sample.seed:016d}"[-16:]
    images["draw"] = pd.util.hash_pandas_object(images["image_id"], index=False, hash_key=key).to_numpy()
    draw = images.set_index("image_id")["draw"]
    totals = _Totals()
    for frame in iter_instances(run, ["image_id", "category", "score", "area_px"], batch_rows=262_144):
        totals.add(frame, draw)
    segmented = images[images["status"] == OK]
    errors = [side.errors for side in sides if side.errors is not None]
    if yardstick is not None:
        segmented = segmented[segmented["image_id"].isin(errors[0].truth_id.keys())]
        chosen = choose_worst(segmented, errors, yardstick.truth, sample.num_images)
    else:
        chosen = choose_images(segmented, totals.examples, sample.num_images)
    gallery = build_gallery(sides, chosen, yardstick)
    if yardstick is None:
        gallery.pictures.sort(key=lambda picture: draw[str(picture["id"])])
    page.show(
        gallery,
        sides=[side.name for side in sides],
        said=_said(gallery, len(segmented), yardstick, len(sides)),
        threshold=None if yardstick is None else yardstick.settings.score_threshold,
    )
    page.run = _totals_parts([side.run for side in sides], images, totals)
    if yardstick is not None:
        page.errors = _error_parts(sides, yardstick)


def _said(gallery: Gallery, num_images: int, yardstick: Yardstick | None, num_sides: int) -> str:
    """How many photos of a run are shown, and how they were chosen."""
    num_shown = len(gallery.pictures)
    of = f"All {num_shown:,}" if num_shown == num_images else f"{num_shown:,} of {num_images:,}"
    if yardstick is None:
        choice = ", half of them chosen so that every class is seen, the others by chance"
        return f"{of} segmented images{'' if num_shown == num_images else choice}."
    settings, both = yardstick.settings, ", of both runs together" if num_sides == 2 else ""
    choice = f": those with most errors at a score of {settings.score_threshold:g}{both}"
    if both:
        choice += ", every other one of those on which the runs differ most"
    return (
        f"{of} segmented images with ground truth{'' if num_shown == num_images else choice}. How wrong a photo is: "
        f"its false positives and missed objects, at an IoU of {settings.iou_threshold:g} and from the score below "
        f"on{both}."
    )


def _totals_parts(runs: Sequence[AnyRun], images: pd.DataFrame, totals: _Totals) -> Part:
    """Facts about the runs; counts, failures, classes and distributions of the first."""
    run = runs[0]
    statuses = images["status"].value_counts()
    failures = [
        {
            "status": status,
            "count": int(count),
            "meaning": STATUSES.get(status, ""),
            "examples": images.loc[images["status"] == status, ["image_id", "error"]]
            .head(_EXAMPLES)
            .to_dict("records"),
        }
        for status, count in statuses.items()
        if status != OK
    ]
    ok = int(statuses.get(OK, 0))
    most = max(totals.by_class.values(), default=1)
    classes = [
        {
            "name": name,
            "count": count,
            "confident": totals.confident_by_class[name],
            "share": count / most,
            "color": to_css(color_of(name)),
        }
        for name, count in totals.by_class.most_common()
    ]
    predictor = run.spec.model.predictor
    facts = {
        "run": run.title.removeprefix("Run "),
        "output": run.storage.uri,
        "input": run.spec.input.uri,
        "model": f"{'' if predictor is None else predictor.name} {run.spec.model.sha256[:16]}".strip(),
    }
    for other in runs[1:]:
        facts |= {"output of B": other.storage.uri, "model of B": other.spec.model.sha256[:16]}
    for name, each in zip(("masks", "masks of B"), runs, strict=False):
        title = refined_by(each)
        facts[name] = "" if title is None else f"made anew by {title}"
    return {
        "facts": {name: value for name, value in facts.items() if value},
        "num_images": len(images),
        "num_ok": ok,
        "num_failed": len(images) - ok,
        "num_empty": int(((images["status"] == OK) & (images["num_instances"] == 0)).sum()),
        "num_instances": totals.num_instances,
        "failures": failures,
        "classes": classes,
        "scores": bar_chart(
            _SCORE_EDGES.tolist(),
            totals.scores.tolist(),
            label="score",
            ticks=[(i / 4, f"{i / 4:g}") for i in range(5)],
        ),
        "sides": bar_chart(
            _SIDE_EDGES.tolist(),
            totals.sides.tolist(),
            label="size: square root of the mask's area, in pixels",
            ticks=[(i, f"{2**i:,}") for i in range(0, 13, 3)],
        ),
        "confident": _CONFIDENT,
    }


def _error_parts(sides: Sequence[Side], yardstick: Yardstick) -> Part:
    """Figures of each class at the score threshold, and its curves over the scores."""
    scores, settings = yardstick.scores, yardstick.settings
    at = int(np.searchsorted(scores, settings.score_threshold))
    errors = [(side.name, side.errors) for side in sides if side.errors is not None]
    names = list(yardstick.truth.names.values())
    first = errors[0][1].by_class
    worst_first = sorted(names, key=lambda name: (np.isnan(first[name].f1[at]), first[name].f1[at]))

    def row(name: str, label: str, counts: Counts) -> list[str]:
        best = counts.best
        figures = [shown("", values[at]) for values in (counts.precision, counts.recall, counts.f1)]
        return [
            name,
            *([label] if label else []),
            *(f"{number:,}" for number in (counts.objects, counts.true[at], counts.false[at])),
            f"{counts.objects - counts.true[at]:,}",
            *figures,
            *(["-", "-"] if best is None else [f"{counts.f1[best]:.3f}", f"{scores[best]:g}"]),
        ]

    most_objects = sorted(names, key=lambda name: -first[name].objects)[:_MAX_CURVES]
    curves = {}
    for name in ("", *most_objects):
        counts = {label: each.by_class[name] if name else each.overall for label, each in errors}
        curves[name] = (
            line_chart(
                {label or "precision": (each.recall, each.precision) for label, each in counts.items()},
                label="recall; up: precision",
                y_range=(0, 1),
                x_range=(0, 1),
            ),
            line_chart(
                {label or "F1": (scores, each.f1) for label, each in counts.items()},
                label="score; up: F1",
                y_range=(0, 1),
                x_range=(0, 1),
            ),
        )
    best = errors[0][1].overall.best
    return {
        "iou_threshold": settings.iou_threshold,
        "score_threshold": settings.score_threshold,
        "of": "masks" if yardstick.iou_type == "segm" else "boxes",
        "columns": ["class", *(["run"] if len(errors) == 2 else []), *_ERROR_COLUMNS],
        "rows": [
            *(row("all classes", label, each.overall) for label, each in errors),
            *(row(name, label, each.by_class[name]) for name in worst_first for label, each in errors),
        ],
        "curves": [(name, pair) for name, pair in curves.items() if all(pair)],
        "num_classes": len(names),
        "best": None if best is None else (f"{errors[0][1].overall.f1[best]:.3f}", f"{scores[best]:g}"),
        "notes": [f"{label}: {note}".removeprefix(": ") for label, each in errors for note in each.notes],
        "change": _change(errors[0][1], errors[1][1]) if len(errors) == 2 else "",
    }


def _change(first: RunErrors, second: RunErrors) -> str:
    """On how many photos the second run has more errors than the first, and on how many fewer."""
    difference = (second.false + second.missed) - (first.false + first.missed)
    fewer, more, as_many = (int(kind.sum()) for kind in (difference < 0, difference > 0, difference == 0))
    return (
        f"Photos on which B has fewer errors than A: {fewer:,}; more: {more:,}; as many: {as_many:,}. In all it has "
        f"{int(difference.sum()):+,} errors."
    )
