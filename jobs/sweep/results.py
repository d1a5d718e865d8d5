"""Results table of a sweep: a row for each trial, means over seeds, published differences beside ours, a plot."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config.sweep import EffectSection
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


@dataclass(frozen=True)
class TrialRow:
    """A trial's row of the table.

    Attributes:
        trial: Its name.
        error: Why it failed; None for a trial that is done.
        values: Its case, and its value of each key of the grid.
        seed: Its train.seed.
        figures: Of FIGURES those that the last validation measured; none of a failed trial.
        best_segm_ap: The highest segm AP of all validations, so it is selected on the very set it is measured on.
        step, epoch: Of the last logged step; 0 without one.
        loss, images_per_s: Of the last logged step, and the mean over all of them; None without one.
        output: URI of its training.
    """

    trial: str
    error: str | None
    values: Mapping[str, object]
    seed: int
    figures: Mapping[str, float]
    best_segm_ap: float | None
    step: int
    epoch: float
    loss: float | None
    images_per_s: float | None
    output: str

    @property
    def status(self) -> str:
        """ "done" or "failed"."""
        return "done" if self.error is None else "failed"


def make_row(name: str, values: Mapping[str, object], seed: int, output: TrainingOutput, error: str | None) -> TrialRow:
    """The row of a trial from what its training has written."""
    rows = output.read_metrics()
    validations = [row for row in rows if "validation_s" in row] if error is None else []
    steps = [row for row in rows if "loss" in row]
    last: Mapping[str, float] = validations[-1] if validations else {}
    return TrialRow(
        name,
        error,
        values,
        seed,
        {figure: last[figure] for figure in FIGURES if figure in last},
        best_segm_ap=max((row["segm_AP"] for row in validations if "segm_AP" in row), default=None),
        step=int(steps[-1]["step"]) if steps else 0,
        epoch=steps[-1]["epoch"] if steps else 0.0,
        loss=steps[-1]["loss"] if steps else None,
        images_per_s=statistics.fmean(row["images_per_s"] for row in steps) if steps else None,
        output=output.uri,
    )


def write_results(output: Storage, rows: Sequence[TrialRow], effects: Sequence[EffectSection]) -> None:
    """Writes results.parquet, results.md and results.png, replacing earlier ones; without rows it writes nothing."""
    if not rows:
        return
    buffer = io.BytesIO()
    pq.write_table(_to_table(rows), buffer, compression="zstd", write_page_checksum=True)
    output.write_bytes(f"{RESULTS}.parquet", buffer.getvalue())
    output.write_bytes(f"{RESULTS}.md", to_markdown(rows, effects).encode())
    output.write_bytes(f"{RESULTS}.png", plot(rows))


def _to_table(rows: Sequence[TrialRow]) -> pa.Table:
    text, number, whole = pa.string(), pa.float64(), pa.int64()

    def column(name: str, dtype: pa.DataType) -> pa.Array:
        return pa.array([getattr(row, name) for row in rows], dtype)

    return pa.table(
        {
            **{name: column(name, text) for name in ("trial", "status", "error")},
            **{axis: _axis_column([row.values[axis] for row in rows]) for axis in rows[0].values},
            "seed": column("seed", whole),
            **{name: pa.array([row.figures.get(name) for row in rows], number) for name in FIGURES},
            "best_segm_AP": column("best_segm_ap", number),
            "step": column("step", whole),
            **{name: column(name, number) for name in ("epoch", "loss", "images_per_s")},
            "output": column("output", text),
        }
    )


def _axis_column(values: Sequence[object]) -> pa.Array:
    """The values of one key of the grid: numbers where all of them are, else text."""
    if all(type(value) in (int, float) for value in values):
        return pa.array(values, pa.int64() if all(type(value) is int for value in values) else pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _group_by_values(rows: Sequence[TrialRow]) -> dict[tuple[str, ...], list[TrialRow]]:
    """The rows by their values, as text; seeds of the same values are one group. In order of the rows."""
    groups: dict[tuple[str, ...], list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(tuple(map(_text, row.values.values())), []).append(row)
    return groups


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def to_markdown(rows: Sequence[TrialRow], effects: Sequence[EffectSection] = ()) -> str:
    """A Markdown page: means and standard deviations over the seeds, published effects, every trial."""
    axes = list(rows[0].values)
    lines = ["# Results", "", _DEFINITION, ""]
    lines += _table_head([*axes, "seeds", *_SHOWN.values()], num_text=len(axes))
    for setting, group in _group_by_values(rows).items():
        done = [row for row in group if row.error is None]
        cells = [_mean([row.figures.get(figure) for row in done]) for figure in _SHOWN]
        failed = f" (+ {len(group) - len(done)} failed)" if len(done) < len(group) else ""
        lines.append(_line([*setting, f"{len(done)}{failed}", *cells]))
    if effects:
        lines += ["", "## Beside published differences", ""]
        head = ["effect", "figure", "published, points", "here, points", "seeds", "same sign", "source"]
        lines += _table_head(head, num_text=2)
        lines += [_line(_effect_cells(rows, effect)) for effect in effects]
    lines += ["", "## Every trial", ""]
    lines += _table_head(["trial", "seed", "steps", *_SHOWN.values(), "error"], num_text=1)
    for row in rows:
        cells = [_figure(row.figures.get(figure)) for figure in _SHOWN]
        error = " ".join((row.error or "").split()).replace("|", "\\|")
        lines.append(_line([row.trial, str(row.seed), str(row.step), *cells, error]))
    return "\n".join(lines) + "\n"


def _effect_cells(rows: Sequence[TrialRow], effect: EffectSection) -> list[str]:
    points = [100 * difference for difference in paired_differences(rows, effect)]
    measured, same_sign = "", "not measured"
    if points:
        spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
        measured = f"{statistics.fmean(points):+.1f}{spread}"
        same_sign = f"{sum(point * effect.published > 0 for point in points)} of {len(points)}"
    return [
        f"{effect.of} over {effect.over}",
        effect.figure.replace("_", " "),
        f"{effect.published:+.1f}",
        measured,
        str(len(points)),
        same_sign,
        effect.source,
    ]


def paired_differences(rows: Sequence[TrialRow], effect: EffectSection) -> list[float]:
    """The effect's figure in case `effect.of` minus that in `effect.over`, as fractions (0.01 is a point).

    One difference for each pair of done trials that differ in nothing but the case; empty without such a pair.
    """
    figures: dict[tuple[object, ...], float] = {}  # by case, other values and seed
    for row in rows:
        if effect.figure in row.figures:
            others = [_text(value) for axis, value in row.values.items() if axis != "case"]
            figures[row.values.get("case"), *others, row.seed] = row.figures[effect.figure]
    return [
        figure - figures[effect.over, *others]
        for (case, *others), figure in figures.items()
        if case == effect.of and (effect.over, *others) in figures
    ]


def plot(rows: Sequence[TrialRow]) -> bytes:
    """A PNG: for each combination of values a bar of the mean segm AP over the seeds, and a dot for every seed.

    Where no trial has one, it is the bbox AP.
    """
    from matplotlib.figure import Figure

    figure = "segm_AP" if any("segm_AP" in row.figures for row in rows) else "bbox_AP"
    axes, groups = list(rows[0].values), _group_by_values(rows)
    image = Figure(figsize=(8, 1.2 + 0.32 * len(groups)), layout="constrained")
    plot_axes = image.subplots()
    for y, group in enumerate(groups.values()):
        values = [row.figures[figure] for row in group if figure in row.figures]
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
