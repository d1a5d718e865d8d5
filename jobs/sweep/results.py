"""Results table of a sweep: a row for each trial, means over seeds, published differences beside ours, a plot."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config.sweep import EffectSection, SweepConfig
from jobs.training.output import TrainingOutput
from pipeline.storage.base import Storage

RESULTS = "results"
# Figures of a row, in the order of the table; accuracy is never shown without AP before it.
FIGURES = ("segm_AP", "segm_AP50", "segm_AP75", "bbox_AP", "bbox_AP50", "bbox_AP75", "mean_iou", "accuracy")
_SHOWN = {
    "segm_AP": "segm AP",
    "segm_AP50": "segm AP50",
    "bbox_AP": "bbox AP",
    "mean_iou": "mean IoU",
    "accuracy": "accuracy",
}
_DEFINITION = (
    "AP is COCO's, on the validation set, of the last weights. Mean IoU is that of the pairs found with a mask IoU and "
    "a score of at least 0.5. Accuracy is TP / (TP + FP + FN) at the same thresholds; it depends on them, and AP does "
    "not, so it only serves to compare with studies that report one. Means ± standard deviations over the seeds."
)


def make_row(
    name: str, values: Mapping[str, Any], seed: int, output: TrainingOutput, error: str | None
) -> dict[str, Any]:
    """A trial's row: trial, status ("done" or "failed"), error, its values, seed, FIGURES and other measurements.

    The figures are those of the last validation; one that was not measured is None, and so are all of a failed trial.
    `best_segm_AP` is the highest of all validations, so it is selected on the very set it is measured on. `step` and
    `epoch` are 0 where no step was logged.
    """
    rows = output.read_metrics()
    validations = [row for row in rows if "validation_s" in row] if error is None else []
    steps = [row for row in rows if "loss" in row]
    last = validations[-1] if validations else {}
    scores = [row["segm_AP"] for row in validations if "segm_AP" in row]
    return {
        "trial": name,
        "status": "done" if error is None else "failed",
        "error": error,
        **values,
        "seed": seed,
        **{figure: last.get(figure) for figure in FIGURES},
        "best_segm_AP": max(scores) if scores else None,
        "step": steps[-1]["step"] if steps else 0,
        "epoch": steps[-1]["epoch"] if steps else 0.0,
        "loss": steps[-1]["loss"] if steps else None,
        "images_per_s": statistics.fmean(row["images_per_s"] for row in steps) if steps else None,
        "output": output.uri,
    }


def write_results(output: Storage, rows: Sequence[Mapping[str, Any]], config: SweepConfig) -> None:
    """Writes results.parquet, results.md and results.png, replacing earlier ones; without rows it writes nothing."""
    if not rows:
        return
    axes = [*(["case"] if config.sweep.cases else []), *config.sweep.grid]
    buffer = io.BytesIO()
    pq.write_table(_to_table(rows, axes), buffer, compression="zstd", write_page_checksum=True)
    output.write_bytes(f"{RESULTS}.parquet", buffer.getvalue())
    output.write_bytes(f"{RESULTS}.md", to_markdown(rows, axes, config.sweep.effects).encode())
    output.write_bytes(f"{RESULTS}.png", plot(rows, axes))


def _to_table(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in FIGURES or name in ("epoch", "loss", "images_per_s", "best_segm_AP"):
            dtype = pa.float64()
        elif name in ("seed", "step"):
            dtype = pa.int64()
        elif name in axes and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            dtype = pa.int64()
        elif name in axes and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            dtype = pa.float64()
        else:
            dtype = pa.string()
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array(values, dtype)
    return pa.table(columns)


def _group_by_axes(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """The rows by their values of all axes, as text; seeds of the same values are one group. In order of the rows."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(_text(row[axis]) for axis in axes), []).append(row)
    return groups


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def to_markdown(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], effects: Sequence[EffectSection] = ()) -> str:
    """A Markdown page: means and standard deviations over the seeds, published effects, every trial."""
    lines = ["# Results", "", _DEFINITION, ""]
    head = [*axes, "seeds", *_SHOWN.values()]
    lines += _table_head(head, num_text=len(axes))
    for setting, group in _group_by_axes(rows, axes).items():
        done = [row for row in group if row["status"] == "done"]
        cells = [_mean([row[figure] for row in done]) for figure in _SHOWN]
        failed = f" (+ {len(group) - len(done)} failed)" if len(done) < len(group) else ""
        lines.append(_line([*setting, f"{len(done)}{failed}", *cells]))
    if effects:
        lines += ["", "## Beside published differences", ""]
        head = ["effect", "figure", "published, points", "here, points", "seeds", "same sign", "source"]
        lines += _table_head(head, num_text=2)
        lines += [_line(_effect_cells(rows, axes, effect)) for effect in effects]
    lines += ["", "## Every trial", ""]
    lines += _table_head(["trial", "seed", "steps", *_SHOWN.values(), "error"], num_text=1)
    for row in rows:
        cells = [_figure(row[figure]) for figure in _SHOWN]
        error = " ".join((row["error"] or "").split()).replace("|", "\\|")
        lines.append(_line([row["trial"], str(row["seed"]), str(row["step"]), *cells, error]))
    return "\n".join(lines) + "\n"


def _effect_cells(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], effect: EffectSection) -> list[str]:
    differences = paired_differences(rows, axes, effect)
    measured, same_sign = "", "not measured"
    if differences:
        points = [100 * difference for difference in differences]
        spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
        measured = f"{statistics.fmean(points):+.1f}{spread}"
        agreeing = sum(point * effect.published > 0 for point in points)
        same_sign = f"{agreeing} of {len(points)}"
    return [
        f"{effect.of} over {effect.over}",
        effect.figure.replace("_", " "),
        f"{effect.published:+.1f}",
        measured,
        str(len(differences)),
        same_sign,
        effect.source,
    ]


def paired_differences(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], effect: EffectSection) -> list[float]:
    """The effect's figure in case `effect.of` minus that in `effect.over`, as fractions (0.01 is a point).

    One difference for each pair of done trials that differ in nothing but the case; empty without such a pair.
    """
    shared_axes = [axis for axis in axes if axis != "case"] + ["seed"]
    by_case: dict[str, dict[tuple[str, ...], float]] = {effect.of: {}, effect.over: {}}
    for row in rows:
        if row["status"] == "done" and row.get("case") in by_case and row[effect.figure] is not None:
            by_case[row["case"]][tuple(_text(row[name]) for name in shared_axes)] = row[effect.figure]
    over = by_case[effect.over]
    return [value - over[point] for point, value in by_case[effect.of].items() if point in over]


def plot(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], figure: str = "segm_AP") -> bytes:
    """A PNG: for each combination of values a bar of the mean figure over the seeds, and a dot for every seed.

    Where no trial has the figure, that of boxes (bbox_AP) is shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(row[figure] is not None for row in rows):
        figure = "bbox_AP"
    groups = _group_by_axes(rows, axes)
    image = Figure(figsize=(8, 1.2 + 0.32 * len(groups)), layout="constrained")
    FigureCanvasAgg(image)
    plot_axes = image.subplots()
    for y, group in enumerate(groups.values()):
        values = [row[figure] for row in group if row[figure] is not None]
        if values:
            plot_axes.barh(y, statistics.fmean(values), color="#9db8d9", height=0.62)
            plot_axes.plot(values, [y] * len(values), "o", color="#1f4e8c", markersize=4)
        else:
            plot_axes.text(0, y, " failed", va="center", fontsize=8, color="#a33")
    plot_axes.set_yticks(range(len(groups)), [", ".join(_short(part) for part in name) or "all" for name in groups])
    plot_axes.tick_params(labelsize=8)
    plot_axes.invert_yaxis()
    plot_axes.set_xlim(left=0)
    plot_axes.grid(axis="x", alpha=0.3)
    by_axes = f" by {', '.join(axes)}" if axes else ""
    plot_axes.set_title(f"{figure.replace('_', ' ')}{by_axes}; dots are seeds", loc="left", fontsize=10)
    buffer = io.BytesIO()
    image.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _short(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"


def _mean(values: Sequence[float | None]) -> str:
    measured = [value for value in values if value is not None and math.isfinite(value)]
    if not measured:
        return ""
    spread = f" ± {statistics.stdev(measured):.3f}" if len(measured) > 1 else ""
    return f"{statistics.fmean(measured):.3f}{spread}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table_head(names: Sequence[str], *, num_text: int) -> list[str]:
    return [_line(names), "|" + "---|" * num_text + "---:|" * (len(names) - num_text)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
