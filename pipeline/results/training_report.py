"""What a page says of a training: figures of its end, curves over the steps, of each class too, photos left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from pipeline.results.charts import line_chart

_MOST_CLASSES = 12  # whose curves are drawn: those with the lowest AP at the end
_CHARTS = {
    "loss": lambda name: name.startswith("loss"),
    "average precision": lambda name: name.endswith("_AP"),
    "learning rate": lambda name: name in ("lr", "learning_rate"),
    "images/s": lambda name: name == "images_per_s",
}


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a training.

    Attributes:
        metrics: a row for each `step` that was logged, with losses, AP and others, as metrics.parquet has them.
        classes: figures of each `category` at each `step` that was validated; None without validation.
        facts: what stands above the curves, by name.
        unusable: photos that could not be used, and why.
        settings: its settings as text.
    """

    metrics: pd.DataFrame
    classes: pd.DataFrame | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""


def training_parts(record: TrainingRecord) -> dict[str, object]:
    """The template's `training`."""
    numbers = record.metrics.select_dtypes("number")
    steps = numbers["step"] if "step" in numbers else pd.Series(range(len(numbers)))
    charts = []
    for quantity, is_shown in _CHARTS.items():
        lines = {str(name): (steps, numbers[name]) for name in numbers.columns if is_shown(str(name))}
        charts.append(line_chart(lines, label=f"step; up: {quantity}"))
    classes = record.classes
    rows: list[tuple[str, list[str]]] = []
    figures: list[str] = []
    if classes is not None and len(classes):
        figures = [name for name in classes.columns if name not in ("step", "category")]
        shown = next((name for name in ("segm_AP", "bbox_AP") if name in figures and classes[name].notna().any()), None)
        if shown is not None:
            charts.append(_class_chart(classes, shown))
        last = classes[classes["step"] == classes["step"].max()]
        rows = [
            (str(row["category"]), ["-" if row[name] != row[name] else f"{row[name]:.3f}" for name in figures])
            for row in last.to_dict("records")
        ]
    return {
        "facts": dict(record.facts),
        "charts": [chart for chart in charts if chart],
        "figures": figures,
        "classes": rows,
        "unusable": sorted(record.unusable.items()),
        "settings": record.settings,
    }


def _class_chart(classes: pd.DataFrame, figure: str) -> str:
    """One figure of each class over the steps; of many classes those that end lowest."""
    ends = classes.sort_values("step", kind="stable").groupby("category", sort=False)[figure].last().sort_values()
    chosen = ends.index[:_MOST_CLASSES]
    lines = {
        str(name): (rows["step"], rows[figure])
        for name, rows in classes.groupby("category", sort=False)
        if name in set(chosen)
    }
    which = f" of the {len(chosen)} lowest of {len(ends)} classes" if len(ends) > len(chosen) else " of each class"
    return line_chart(lines, label=f"step; up: {figure.replace('_', ' ')}{which}", y_range=(0, 1))
