"""History of evaluations: one small Parquet file for each, written once; tables and plots of figures over time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.metrics import Metrics
from pipeline.manifest import sha256_of, to_json
from pipeline.results import FIGURES
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet
from pipeline.storage.stores import open_storage

if TYPE_CHECKING:
    import pandas as pd

HISTORY_SCHEMA = pa.schema(
    [
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("evaluation_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string()),
        pa.field("truth_sha256", pa.string()),
        pa.field("config_sha256", pa.string()),
        pa.field("label", pa.string()),
        pa.field("iou_type", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("num_failed", pa.int64(), nullable=False),
    ]
)
CONTEXT = ("run_id", "model_sha256", "truth_sha256", "config_sha256", "label")


def append_history(history: str | Storage, metrics: Metrics, *, when: Any, **context: str | None) -> bool:
    """Writes an evaluation's figures below `history`.

    The file's name is a hash of what was measured (run, model, truth, settings), without the time, and the file is put
    only if absent. So the same evaluation is kept once, however often or by however many processes it is added.

    Args:
        history: folder or bucket prefix.
        when: the time of the evaluation, with a time zone.
        context: values for CONTEXT; `run_id` is needed, the others may be left out.

    Returns:
        Whether the evaluation was added.

    Raises:
        ValueError: unknown names in `context`, no run_id, or a time without a zone.
    """
    if unknown := sorted(set(context) - set(CONTEXT)):
        raise ValueError(f"history keeps no {unknown[0]!r}; allowed are {', '.join(CONTEXT)}")
    if not context.get("run_id"):
        raise ValueError("history needs the run_id of what was measured")
    if when.tzinfo is None:
        raise ValueError(f"when is {when}, a time without a zone; give one, e.g. UTC")
    storage = open_storage(history) if isinstance(history, str) else history
    identity = {
        **{name: context.get(name) for name in CONTEXT if name != "label"},
        "score_threshold": metrics.score_threshold,
        "iou_threshold": metrics.iou_threshold,
        "iou_types": sorted(metrics.coco),
    }
    evaluation_id = sha256_of(to_json(identity))[:16]
    failed = metrics.coverage.num_images - metrics.coverage.num_ok
    rows = [
        {
            "when": when,
            "evaluation_id": evaluation_id,
            **{name: context.get(name) for name in CONTEXT},
            "iou_type": row["iou_type"],
            "metric": row["metric"],
            "category": row["category"] if isinstance(row["category"], str) else None,
            "value": None if row["value"] != row["value"] else row["value"],
            "num_images": metrics.coverage.num_images,
            "num_failed": failed,
        }
        for row in metrics.to_frame().to_dict("records")
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA), buffer, compression="zstd")
    return storage.put_if_absent(f"{evaluation_id}.parquet", buffer.getvalue())


def load_history(history: str | Storage, *, iou_type: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """All figures of the history, oldest first.

    Args:
        history: folder or bucket prefix.
        iou_type, metric: only figures of this kind of IoU, or with this name.

    Returns:
        A row for each figure, with the columns of HISTORY_SCHEMA; no row where nothing is kept.
    """
    storage = open_storage(history) if isinstance(history, str) else history
    tables = [
        read_parquet(storage.read_bytes(info.key))
        for info in storage.iter_objects()
        if info.key.endswith(".parquet") and "/" not in info.key
    ]
    # Columns that an earlier version did not write are null.
    table = pa.concat_tables([HISTORY_SCHEMA.empty_table(), *tables], promote_options="default")
    frame = table.select(HISTORY_SCHEMA.names).to_pandas()
    for column, value in (("iou_type", iou_type), ("metric", metric)):
        if value is not None:
            frame = frame[frame[column] == value]
    return frame.sort_values(["when", "evaluation_id"], kind="stable", ignore_index=True)


def trend(frame: pd.DataFrame, figures: Sequence[str] = FIGURES) -> pd.DataFrame:
    """One row for each evaluation, oldest first, with a column for each figure over all categories, e.g. `segm AP`.

    Args:
        frame: from `load_history`.
        figures: the columns, each "iou_type metric". An evaluation without the figure has NaN; a figure that no
            evaluation has gets no column.
    """
    overall = frame[frame["category"].isna()].copy()
    overall["figure"] = overall["iou_type"] + " " + overall["metric"]
    keys = ["when", "evaluation_id", "run_id", "model_sha256", "truth_sha256", "label", "num_images", "num_failed"]
    wide = overall.pivot_table(index="evaluation_id", columns="figure", values="value", dropna=False)
    rows = overall[keys].drop_duplicates("evaluation_id").set_index("evaluation_id")
    columns = {figure: wide[figure] for figure in figures if figure in wide.columns}
    return rows.assign(**columns).reset_index().sort_values("when", ignore_index=True, kind="stable")


def plot_trend(frame: pd.DataFrame, figures: Sequence[str] = FIGURES) -> bytes:
    """The trend as a PNG, with one line for each figure over time.

    Args:
        frame, figures: see `trend`.

    Raises:
        ValueError: no evaluation to plot, or none with one of the figures.
    """
    table = trend(frame, figures)
    if not len(table):
        raise ValueError("there is no evaluation in the history yet")
    drawn = [figure for figure in figures if figure in table]
    if not drawn:
        raise ValueError(f"no evaluation in the history has {', '.join(figures)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in drawn:
        axes.plot(table["when"], table[name], marker="o", label=name)
    axes.set_ylim(0, 1)
    metrics = {name.split(" ", 1)[1] for name in drawn}
    axes.set_ylabel(metrics.pop() if len(metrics) == 1 else "figure")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.autofmt_xdate()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()
