"""`maskfleet report`, `export` and `history`: HTML page and exported files of a run, trend of kept evaluations."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.config.load import ConfigError
from jobs.config.results import ExportConfig, HistoryConfig, ReportConfig
from jobs.evaluate import EVALUATION_SUFFIX, METRICS_JSON, open_finished
from jobs.training.output import CONFIG, TrainingOutput
from pipeline.manifest import RUN_KEY, Run, RunError
from pipeline.results.export import Exported, export_run
from pipeline.results.history import FIGURES, load_history, plot_trend, trend
from pipeline.results.report import build_report
from pipeline.storage.stores import open_file, open_storage


def check_source(config: ReportConfig | ExportConfig) -> None:
    """Looks whether there is something to read, before anything is written.

    Raises:
        RunError: no finished run there and, for a report, no training either.
    """
    storage = open_storage(config.run.uri, config.storage)
    if isinstance(config, ExportConfig) or storage.exists(RUN_KEY):
        open_finished(config.run.uri, "run.uri", config.storage)
    elif not storage.exists(CONFIG):
        raise RunError(f"run.uri: {config.run.uri} holds neither a run ({RUN_KEY}) nor a training ({CONFIG})")


def write_report(config: ReportConfig) -> str:
    """Writes the HTML report of a run, with its evaluation where there is one, or of a training; returns its URI.

    Raises:
        RunError: no finished run there (see `check_source`), or `report.evaluation` holds no figures.
    """
    uri = config.run.uri.rstrip("/")
    storage = open_storage(uri, config.storage)
    settings: dict[str, Any] = {"num_images": config.report.num_images, "seed": config.report.seed}
    if storage.exists(RUN_KEY):
        run = open_finished(uri, "run.uri", config.storage)
        html = build_report(run, evaluation=_evaluation_of(config, run), **settings)
    else:
        metrics = pd.DataFrame(TrainingOutput(uri, config.storage).read_metrics())
        html = build_report(training=metrics, title=f"Training {uri}", **settings)
    target = config.output.uri or f"{storage.uri.rstrip('/')}.report.html"
    storage, key = open_file(target, config.storage)
    storage.write_bytes(key, html.encode())
    return target


def _evaluation_of(config: ReportConfig, run: Run) -> dict[str, Any] | None:
    """The figures at `report.evaluation`, or of the evaluation beside the run; None where there is none beside it."""
    evaluation_uri = config.report.evaluation
    storage = open_storage(evaluation_uri or run.storage.uri.rstrip("/") + EVALUATION_SUFFIX, config.storage)
    try:
        return json.loads(storage.read_bytes(METRICS_JSON))
    except FileNotFoundError:
        if evaluation_uri is None:
            return None
        raise RunError(f"report.evaluation: {evaluation_uri} holds no {METRICS_JSON}") from None


def write_export(config: ExportConfig) -> tuple[str, Exported]:
    """Writes a run in another tool's format; returns the target's URI and what was written.

    Raises:
        RunError: no finished run there.
        ExportError: names that clash or would leave the folder.
    """
    run = open_finished(config.run.uri, "run.uri", config.storage)
    settings = config.export
    target = config.output.uri or f"{run.storage.uri.rstrip('/')}.{settings.to}"
    storage = open_storage(target, config.storage)
    exported = export_run(run, storage, settings.to, min_score=settings.min_score, tolerance_px=settings.tolerance_px)
    return target, exported


def read_history(config: HistoryConfig) -> tuple[pd.DataFrame, str | None]:
    """Every kept evaluation as one row, oldest first; and the URI of the plot, None where output.uri is not set.

    Raises:
        ConfigError: a figure that no kept evaluation has.
        ValueError: output.uri is set and the history is empty, so there is nothing to plot.
    """
    kept, figures = load_history(open_storage(config.history.uri, config.storage)), config.history.figures
    allowed = trend(kept, sorted(set(kept["iou_type"] + " " + kept["metric"]))).columns if len(kept) else ()
    if len(kept) and figures != FIGURES and (unknown := [name for name in figures if name not in allowed]):
        listed = ", ".join(name for name in allowed if " " in name)
        uri = config.history.uri
        raise ConfigError(f"history.figures: {unknown[0]!r} is in no evaluation of {uri}; allowed are {listed}")
    if config.output.uri is None:
        return trend(kept, figures), None
    storage = open_storage(config.output.uri, config.storage)
    storage.write_bytes("history.png", plot_trend(kept, figures))
    return trend(kept, figures), storage.uri_of("history.png")


def to_rich_history(table: pd.DataFrame) -> Table:
    """The trend as a printable table; hashes are cut to 8 digits."""
    printed = Table(title="history", box=SIMPLE_HEAD)
    columns = {"when": "when", "label": "label", "run_id": "run", "model_sha256": "model", "truth_sha256": "truth"}
    figures = [name for name in table.columns if " " in name]
    for name in columns.values():
        printed.add_column(name, no_wrap=True)
    for name in ("images", "failed", *figures):
        printed.add_column(name, justify="right")
    for row in table.to_dict("records"):
        hashes = [str(row[name] or "-")[:8] for name in ("run_id", "model_sha256", "truth_sha256")]
        counts = [f"{row['num_images']:,}", f"{row['num_failed']:,}"]
        values = ["-" if row[name] != row[name] else f"{row[name]:.4f}" for name in figures]
        printed.add_row(f"{row['when']:%Y-%m-%d %H:%M}", str(row["label"] or "-"), *hashes, *counts, *values)
    return printed
