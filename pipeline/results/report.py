"""The HTML report of a run, in one file: totals, failures, distributions, a gallery with filters, figures and curves.

The file holds everything it shows, and a content security policy that forbids the browser to load anything else. The
gallery holds photos and masks separately; the page draws the masks' outlines, so filters act on single instances.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.evaluation.coco import KEYPOINT_STAT_NAMES, STAT_NAMES
from pipeline.manifest import Run, open_run
from pipeline.masks.contours import mask_to_part_polygons
from pipeline.results.charts import bar_chart, line_chart
from pipeline.results.render import open_photo, palette
from pipeline.schema import OK, STATUSES
from pipeline.storage.files import Location
from pipeline.tables import decode_mask, iter_instances, load_images, load_instances

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import MetricsJson, PlainConfusion

MAX_BYTES = 18_000_000  # of photos and outlines, well below 20 MB for the whole file
_PHOTO_PX = 720
_PHOTO_QUALITY = 74
_MAX_INSTANCES = 40  # drawn on one photo
_EXAMPLES = 6  # images listed for each failure, and photos of each class for the gallery to choose from
_SCORE_EDGES = np.linspace(0, 1, 21)
_SIDE_EDGES = np.linspace(0, 12, 25)  # log2 of the square root of the area
_CONFIDENT = 0.5  # the score from which an instance is counted as confident
_AT_THRESHOLD = ("precision", "recall", "F1", "mean_iou", "true_positives", "false_positives", "false_negatives")
_MOST_CLASSES = 16  # of a confusion matrix that is shown whole
_MOST_PAIRS = 20  # of classes, shown of a larger confusion matrix


@dataclass
class _Totals:
    """Counts over all instances, gathered batch by batch in constant memory.

    Attributes:
        by_class: instances of each class.
        confident_by_class: those with a score of at least `_CONFIDENT`.
        scores, sides: int64, histograms over `_SCORE_EDGES` and `_SIDE_EDGES`.
        examples: `category`, `image_id`, `draw`: up to `_EXAMPLES` photos for each class.
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
        self.examples = candidates.groupby("category", sort=False).head(_EXAMPLES)

    @cached_property
    def num_instances(self) -> int:
        return sum(self.by_class.values())


def build_report(
    run: str | Run | None = None,
    *,
    evaluation: MetricsJson | None = None,
    training: pd.DataFrame | None = None,
    unfinished: str = "",
    title: str | None = None,
    num_images: int = 120,
    seed: int = 0,
) -> str:
    """The report's HTML.

    Args:
        run: a bulk run or its URI; None for a report of a training alone.
        evaluation: `Metrics.to_dict()`, for AP tables and precision-recall curves.
        training: metrics of a training, one row for each step: `step` and other numbers. Columns whose name holds
            "loss" share a chart, those with "AP" share another, and `lr` has its own.
        unfinished: what the page says of a run that is not sealed, such as how many of its shards are committed.
        title: of the page; None: made of the run's id.
        num_images: photos in the gallery, at most; fewer where the file would grow too large. Half are chosen so that
            each class is seen, the rest at random. The choice depends on the run and `seed` alone.

    Raises:
        RunError: there is no such run.
        ValueError: neither a run nor a training.
    """
    if run is None and training is None:
        raise ValueError("a report needs a run or a training")
    from jinja2 import Environment

    run = open_run(run) if isinstance(run, str) else run
    run_part, gallery = ({}, []) if run is None else _run_parts(run, num_images, seed)
    evaluation_part = None if evaluation is None else _evaluation_parts(evaluation)
    charts = None if training is None else _training_charts(training)
    sections = [
        (key, name)
        for key, name, is_shown in (
            ("evaluation", "Evaluation", evaluation_part),
            ("training", "Training", charts),
            ("failures", "Failures", run_part.get("failures")),
            ("instances", "Instances", run_part),
            ("pictures", "Pictures", run_part),
        )
        if is_shown
    ]
    text = resources.files("pipeline.results").joinpath("report.html.j2").read_text("utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return page.render(
        title=title or ("Training" if run is None else f"Run {run.run_id}"),
        run=run_part or None,
        unfinished=None if run is None or run.sealed else unfinished or "only committed shards are shown",
        evaluation=evaluation_part,
        training=charts,
        sections=sections,
        data=_script_json(gallery),
    )


def _run_parts(run: Run, num_images: int, seed: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The template's `run`, and the entries of the gallery."""
    images = load_images(run, ["image_id", "uri", "status", "error", "height", "width", "num_instances"])
    # A random number for each image, computed from its id and the seed: samples stay the same as a run grows.
    key = f"{seed:016d}"[-16:]
    images["draw"] = pd.util.hash_pandas_object(images["image_id"], index=False, hash_key=key).to_numpy()
    draw = images.set_index("image_id")["draw"]
    totals = _Totals()
    for frame in iter_instances(run, ["image_id", "category", "score", "area_px"], batch_rows=262_144):
        totals.add(frame, draw)
    chosen = choose_images(images[images["status"] == OK], totals.examples, num_images)
    colors = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in palette(totals.by_class).items()}
    gallery = _gallery(run, chosen, colors)
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
            "color": colors[name],
        }
        for name, count in totals.by_class.most_common()
    ]
    facts = {
        "run": run.run_id,
        "output": run.storage.uri,
        "input": run.spec.input.uri,
        "model": run.spec.model.sha256[:16],
    }
    page: dict[str, object] = {
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
        "num_shown": len(gallery),
        "confident": _CONFIDENT,
    }
    return page, gallery


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
    turns = [part.assign(turn=range(len(part))) for part in (for_classes, rest)]
    return pd.concat(turns).sort_values("turn", kind="stable", ignore_index=True).drop(columns="turn")


def _gallery(run: Run, chosen: pd.DataFrame, colors: Mapping[str, str]) -> list[dict[str, object]]:
    """The entries of the chosen images in order of `draw`, as many as MAX_BYTES allows."""
    columns = ["image_id", "category", "score", "x1", "y1", "x2", "y2", "area_px", "rle_counts"]
    columns += ["image_height", "image_width"]
    rows = load_instances(run, columns, [("image_id", "in", chosen["image_id"].tolist())]) if len(chosen) else None
    rows_of = {} if rows is None else dict(tuple(rows.groupby("image_id")))
    gallery: list[tuple[int, dict[str, object]]] = []
    size = 0
    for row in chosen.itertuples():
        try:
            photo = open_photo(Location(row.uri, run.storage.settings))
            entry = _gallery_entry(row, photo, rows_of.get(row.image_id), colors)
        except (OSError, ValueError):  # the photo is gone or has changed: the report shows the run without it
            continue
        size += len(json.dumps(entry))
        if size > MAX_BYTES:
            break
        gallery.append((row.draw, entry))
    return [entry for _, entry in sorted(gallery, key=lambda pair: pair[0])]


def _gallery_entry(
    row: Any, photo: Image.Image, instances: pd.DataFrame | None, colors: Mapping[str, str]
) -> dict[str, object]:
    """One photo as the page's script takes it: a JPEG, and outlines in its pixels.

    Raises:
        ValueError: it has another size than the one that was segmented.
    """
    height, width = photo.height, photo.width
    if (height, width) != (row.height, row.width):
        raise ValueError("the photo is not the one that was segmented")
    photo.thumbnail((_PHOTO_PX, _PHOTO_PX), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=_PHOTO_QUALITY, optimize=True)
    scale = photo.width / width
    drawn = []
    best = [] if instances is None else instances.nlargest(_MAX_INSTANCES, "score").itertuples()
    for instance in best:
        polygons = mask_to_part_polygons(decode_mask(instance), tolerance_px=0.7 / scale)
        drawn.append(
            {
                "c": instance.category,
                "s": round(float(instance.score), 3),
                "a": int(instance.area_px),
                "k": colors[instance.category],
                "b": [round(float(v) * scale, 1) for v in (instance.x1, instance.y1, instance.x2, instance.y2)],
                "p": [[round(value * scale, 1) for value in polygon] for polygon in polygons],
            }
        )
    return {
        "id": row.image_id,
        "w": photo.width,
        "h": photo.height,
        "size": f"{width} x {height}",
        "src": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "found": drawn,
    }


def _evaluation_parts(evaluation: MetricsJson) -> dict[str, object]:
    """The template's `evaluation`."""
    overall = evaluation.get("overall", {})
    kinds = list(overall)
    order = [*STAT_NAMES, *KEYPOINT_STAT_NAMES, *_AT_THRESHOLD]  # metrics.json is sorted by name
    names = list(dict.fromkeys(name for kind in kinds for name in overall[kind]))
    metrics = sorted(names, key=lambda name: order.index(name) if name in order else len(order))
    by_category = evaluation.get("by_category", {})
    columns = ("AP", "AP50", "AP75", "precision", "recall", "mean_iou")
    tables = [
        {
            "kind": kind,
            "columns": columns,
            "rows": sorted(
                ((name, [_shown(name, f.get(name)) for name in columns], f.get("AP")) for name, f in of_kind.items()),
                key=lambda row: (row[2] is None, row[2] or 0),
            ),
        }
        for kind, of_kind in by_category.items()
    ]
    curves = [
        line_chart(
            {name: (curve["recall"], curve[name]) for name in curve if name != "recall"},
            label=f"recall ({kind}); up: precision",
            y_range=(0, 1),
        )
        for kind, curve in evaluation.get("pr_curves", {}).items()
    ]
    return {
        "kinds": kinds,
        "rows": [(name, [_shown(name, overall[kind].get(name)) for kind in kinds]) for name in metrics],
        "tables": tables,
        "curves": [curve for curve in curves if curve],
        "slices": [
            {**table, "rows": [[_cell(value) for value in row] for row in table["rows"]]}
            for table in evaluation.get("slices") or ()
        ],
        "confusion": _confusion(evaluation.get("confusion")),
        "notes": evaluation.get("notes", []),
        "score_threshold": evaluation.get("score_threshold"),
        "iou_threshold": evaluation.get("iou_threshold"),
    }


def _confusion(confusion: PlainConfusion | None) -> dict[str, object] | None:
    """A small matrix whole, with each cell's share of its row for shading; of a large one the most confused pairs."""
    if confusion is None:
        return None
    names, counts = confusion["names"], np.array(confusion["counts"], np.int64)
    if len(names) <= _MOST_CLASSES:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]
        return {"names": names, "rows": list(zip(names, cells, strict=True)), "pairs": None}
    confused = counts[:-1, :-1].copy()
    np.fill_diagonal(confused, 0)
    rows, columns = np.unravel_index(np.argsort(-confused, axis=None, kind="stable")[:_MOST_PAIRS], confused.shape)
    pairs = [
        (names[row], names[column], f"{confused[row, column]:,}", f"{counts[row].sum():,}")
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if confused[row, column]
    ]
    return {"names": names, "rows": None, "pairs": pairs}


def _training_charts(training: pd.DataFrame) -> list[str]:
    """Charts of losses, average precision and learning rate, without empty ones."""
    numbers = training.select_dtypes("number")
    steps = numbers["step"] if "step" in numbers else pd.Series(range(len(numbers)))
    groups: dict[str, dict[str, tuple[pd.Series, pd.Series]]] = {
        "loss": {},
        "average precision": {},
        "learning rate": {},
    }
    for name in numbers.columns:
        lower = str(name).lower()
        if "loss" in lower:
            groups["loss"][name] = (steps, numbers[name])
        elif lower in ("lr", "learning_rate"):
            groups["learning rate"][name] = (steps, numbers[name])
        elif "AP" in str(name) or lower.endswith("_ap") or lower.startswith("ap"):
            groups["average precision"][name] = (steps, numbers[name])
    charts = [line_chart(lines, label=f"step; up: {quantity}") for quantity, lines in groups.items() if lines]
    return [chart for chart in charts if chart]


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if name.endswith(("positives", "negatives")) else f"{value:.3f}"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else _shown("", value)


def _script_json(value: Any) -> str:
    """JSON in which no text can end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
