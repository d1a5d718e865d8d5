"""Figures of an evaluation, or of two side by side, as tables and charts of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from pipeline.evaluation.coco import KEYPOINT_STAT_NAMES, STAT_NAMES
from pipeline.evaluation.metrics import MetricsJson, PlainConfusion
from pipeline.results.charts import line_chart

_AT_THRESHOLD = ("precision", "recall", "F1", "mean_iou", "true_positives", "false_positives", "false_negatives")
_MOST_CLASSES = 16  # of a confusion matrix that is shown whole
_MOST_PAIRS = 20  # of classes, shown of a larger confusion matrix
_T = TypeVar("_T")


def side_by_side(first: MetricsJson, second: MetricsJson) -> MetricsJson:
    """The figures of two evaluations as one of "segm A", "segm B" and so on; either may be empty.

    Thresholds, confusion matrix and slices are those of the first that is there; a note says where thresholds differ.
    """
    notes = [f"{side}: {note}" for side, each in (("A", first), ("B", second)) for note in each.get("notes", [])]
    names = ("score_threshold", "iou_threshold")
    if first and second and [first.get(name) for name in names] != [second.get(name) for name in names]:
        notes.append("A and B were evaluated at different thresholds; those below are of A")
    joined: MetricsJson = {**(first or second), "notes": notes}
    joined["overall"] = _by_side(first.get("overall", {}), second.get("overall", {}))
    joined["by_category"] = _by_side(first.get("by_category", {}), second.get("by_category", {}))
    joined["pr_curves"] = _by_side(first.get("pr_curves", {}), second.get("pr_curves", {}))
    return joined


def _by_side(first: Mapping[str, _T], second: Mapping[str, _T]) -> dict[str, _T]:
    """The values of both by kind of IoU and side."""
    return {
        f"{kind} {side}": values[kind]
        for kind in dict.fromkeys([*first, *second])
        for side, values in (("A", first), ("B", second))
        if kind in values
    }


def evaluation_parts(evaluation: MetricsJson) -> dict[str, object]:
    """The `evaluation` of a page: tables, curves, slices, confusion matrix and notes."""
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
                ((name, [shown(name, f.get(name)) for name in columns], f.get("AP")) for name, f in of_kind.items()),
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
        "rows": [(name, [shown(name, overall[kind].get(name)) for kind in kinds]) for name in metrics],
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


def shown(name: str, value: Any) -> str:
    """A figure of this name as text: counts without decimals, "-" for one that is not measured (None or NaN)."""
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if name.endswith(("positives", "negatives")) else f"{value:.3f}"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else shown("", value)
