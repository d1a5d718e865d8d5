"""`maskfleet report`, `export` and `history`: HTML page and exported files of a run, trend of kept evaluations."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from jobs.config.load import ConfigError
from jobs.config.results import ExportConfig, HistoryConfig, ReportConfig
from jobs.evaluate import EVALUATION_SUFFIX, METRICS_JSON, open_finished
from jobs.terminal import counted
from jobs.training.output import CONFIG, TrainingOutput
from pipeline.bulk.corpus import read_plan
from pipeline.evaluation.metrics import MetricsJson
from pipeline.manifest import RUN_KEY, Run, RunError, open_run
from pipeline.results import FIGURES
from pipeline.results.export import Exported, ExportError, export_run
from pipeline.results.history import load_history, plot_trend, trend
from pipeline.results.report import build_report
from pipeline.storage.stores import open_file, open_storage

_HASHES = {"run": "run_id", "model": "model_sha256", "truth": "truth_sha256"}


def check_source(config: ReportConfig | ExportConfig) -> None:
    """Looks whether there is something to read, before anything is written.

    Raises:
        RunError: an export without a finished run there, or a report without a run or a training.
    """
    storage = open_storage(config.run.uri, config.storage)
    if isinstance(config, ExportConfig):
        open_finished(config.run.uri, "run.uri", config.storage)
    elif storage.exists(RUN_KEY):
        _ = open_run(storage).spec
    elif not storage.exists(CONFIG):
        raise RunError(f"run.uri: {config.run.uri} holds neither a run ({RUN_KEY}) nor a training ({CONFIG})")


def write_report(config: ReportConfig) -> str:
    """Writes the HTML report of a run or a training, finished or not; returns a line that says where it is.

    The report of a run holds its evaluation where there is one, and of an unfinished run what is committed so far.

    Raises:
        RunError: no run there (see `check_source`), or `report.evaluation` holds no figures.
    """
    uri = config.run.uri.rstrip("/")
    storage = open_storage(uri, config.storage)
    build = partial(build_report, num_images=config.report.num_images, seed=config.report.seed)
    unfinished = ""
    if storage.exists(RUN_KEY):
        run = open_run(storage)
        unfinished = _missing_shards(run)
        html = build(run, evaluation=_evaluation_of(config, run), unfinished=unfinished)
    else:
        metrics = pd.DataFrame(TrainingOutput(uri, config.storage).read_metrics())
        html = build(training=metrics, title=f"Training {uri}")
    target = config.output.uri or f"{storage.uri.rstrip('/')}.report.html"
    storage, key = open_file(target, config.storage)
    storage.write_bytes(key, html.encode())
    return f"report -> {target}" + (f"; the run is not finished: {unfinished}" if unfinished else "")


def _missing_shards(run: Run) -> str:
    """How much of an unfinished run is there, in words; "" for a finished one."""
    if run.sealed:
        return ""
    plan = read_plan(run.storage)
    if plan is None:
        return "its images are still being listed"
    return f"{len(run.files):,} of {counted(plan.num_shards, 'shard')} committed"


def _evaluation_of(config: ReportConfig, run: Run) -> MetricsJson | None:
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
        ConfigError: the format has no names or numbers for what is in the run.
    """
    run = open_finished(config.run.uri, "run.uri", config.storage)
    settings = config.export
    target = config.output.uri or f"{run.storage.uri.rstrip('/')}.{settings.to}"
    storage = open_storage(target, config.storage)
    min_score, tolerance_px = settings.min_score, settings.tolerance_px
    try:
        return target, export_run(run, storage, settings.to, min_score=min_score, tolerance_px=tolerance_px)
    except ExportError as error:
        raise ConfigError(f"export.to={settings.to}: {error}") from None


def describe_history(config: HistoryConfig) -> str:
    """What `history` would show, for a dry run; ConfigError where no evaluation is kept."""
    kept = _load_history(config)["evaluation_id"].nunique()
    return f"would show {counted(kept, 'evaluation')} of {config.history.uri}"


def read_history(config: HistoryConfig) -> tuple[pd.DataFrame, str | None]:
    """Every kept evaluation as one row, oldest first; and the URI of the plot, None where output.uri is not set.

    Raises:
        ConfigError: no evaluation is kept there, or none with a figure that is asked for.
    """
    kept, figures = _load_history(config), config.history.figures
    allowed = trend(kept, sorted(set(kept["iou_type"] + " " + kept["metric"]))).columns
    if figures != FIGURES and (unknown := [name for name in figures if name not in allowed]):
        listed = ", ".join(name for name in allowed if " " in name)
        uri = config.history.uri
        raise ConfigError(f"history.figures: {unknown[0]!r} is in no evaluation of {uri}; allowed are {listed}")
    if config.output.uri is None:
        return trend(kept, figures), None
    storage = open_storage(config.output.uri, config.storage)
    storage.write_bytes("history.png", plot_trend(kept, figures))
    return trend(kept, figures), storage.uri_of("history.png")


def _load_history(config: HistoryConfig) -> pd.DataFrame:
    kept = load_history(open_storage(config.history.uri, config.storage))
    if not len(kept):
        raise ConfigError(f"history.uri: no evaluation is kept in {config.history.uri}")
    return kept


def to_rich_history(table: pd.DataFrame, width: int) -> Group:
    """The trend as a printable table of at most `width` characters a line; hashes are cut to 8 digits.

    What is the same in all rows stands below the table, and so do the names of columns that found no room.
    """
    figures = [name for name in table.columns if " " in name]
    cells = {
        "when": [f"{when:%Y-%m-%d %H:%M}" for when in table["when"]],
        "label": table["label"].fillna("-").tolist(),
        **{name: table[key].fillna("-").str[:8].tolist() for name, key in _HASHES.items()},
        **{name: [f"{count:,}" for count in table[f"num_{name}"]] for name in ("images", "failed")},
        **{name: ["-" if value != value else f"{value:.4f}" for value in table[name]] for name in figures},
    }
    shared = [name for name in ("label", *_HASHES, "images", "failed") if len(set(cells[name])) == 1]
    shown = [name for name in cells if name not in shared]
    left_out = []
    for name in ("truth", "model", "run", "failed", "images", "label", *reversed(figures[1:])):
        if sum(max(map(len, [name, *cells[name]])) + 3 for name in shown) - 3 <= width:
            break
        if name in shown:
            shown.remove(name)
            left_out.append(name)
    printed = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in shown:
        is_number = name in ("images", "failed", *figures)
        printed.add_column(name, no_wrap=True, justify="right" if is_number else "left")
    for row in zip(*(cells[name] for name in shown)):
        printed.add_row(*row)
    same = [f"{name} {cells[name][0]}" for name in shared if cells[name][0] != "-"]
    notes = [f"in all rows: {', '.join(same)}"] if same else []
    if left_out:
        notes.append(f"no room for {', '.join(left_out)}; a wider terminal or a pipe shows all")
    return Group(printed, *notes)
