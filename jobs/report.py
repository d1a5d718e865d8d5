"""`maskfleet report`, `export` and `history`: HTML page and exported files of a run, trend of kept evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from jobs.config.load import ConfigError
from jobs.config.results import ExportConfig, HistoryConfig, ReportConfig, RunsSection
from jobs.config.train import TrainConfig
from jobs.evaluate import (
    EVALUATION_SUFFIX,
    METRICS_JSON,
    check_fits,
    load_truth,
    notes_on_runs,
    open_finished,
    open_given,
)
from jobs.terminal import counted
from jobs.training.output import CONFIG, TrainingOutput
from jobs.training.summary import build_summary
from pipeline.dataset.run_labels import MIN_SCORE, Exported, export_labels
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotationError
from pipeline.evaluation.metrics import MetricsJson
from pipeline.manifest import RUN_KEY, RunError
from pipeline.plan import read_plan
from pipeline.results import FIGURES
from pipeline.results.errors import Yardstick
from pipeline.results.export import ExportError, export_results
from pipeline.results.figures import side_by_side
from pipeline.results.history import load_history, plot_trend, trend
from pipeline.results.report import Sample, build_report
from pipeline.runs import AnyRun, Runs, check_no_pattern
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.stores import open_file, open_storage

_HASHES = {"run": "run_id", "model": "model_sha256", "truth": "truth_sha256"}


@dataclass(frozen=True)
class ReportPlan:
    """A checked configuration.

    Attributes:
        runs: the run, or several as one, and the second one where there is one; none for the report of a training.
        yardstick: the ground truth; None where none is given.
    """

    config: ReportConfig
    runs: tuple[AnyRun, ...]
    yardstick: Yardstick | None

    def describe(self) -> str:
        """What would be written, for a dry run."""
        beside = f" and {self.config.run_b.uri}" if self.config.run_b is not None else ""
        against = f" against {self.config.ground_truth.uri}" if self.yardstick is not None else ""
        return f"would write a report of {self.config.run.uri}{beside}{against}"


def check_source(config: ExportConfig) -> None:
    """Raises RunError where there is no finished run to export, before anything is written."""
    open_finished(config.run, "run", config.storage)


def prepare_report(config: ReportConfig) -> ReportPlan:
    """Opens the runs and the ground truth; writes nothing.

    Raises:
        RunError: there is neither a run nor a training; or as `open_runs`.
        ConfigError: a second run, or ground truth, for the report of a training.
        ValueError: the ground truth cannot be read, or does not fit the runs.
    """
    storage = open_storage(config.run.uri, config.storage)
    if not _is_of_runs(config.run, storage):
        if not storage.exists(CONFIG):
            check_no_pattern(config.run.uri)
            raise RunError(f"run.uri: {config.run.uri} holds neither a run ({RUN_KEY}) nor a training ({CONFIG})")
        for key, value in (("run_b", config.run_b), ("ground_truth.uri", config.ground_truth.uri)):
            if value is not None:
                raise ConfigError(
                    f"{key}: run.uri is a training, whose report shows its own validation; allowed is null"
                )
        return ReportPlan(config, (), None)
    runs = tuple(open_given(each, config.storage) for each in (config.run, config.run_b) if each is not None)
    for run in runs:
        _ = run.spec, isinstance(run, Runs) and run.parts
    if config.ground_truth.uri is None:
        return ReportPlan(config, runs, None)
    truth = load_truth(AnnotationSource(**vars(config.ground_truth)), config.storage, runs[0], config.evaluate)
    yardstick = Yardstick(truth, config.evaluate)
    for run in runs:
        check_fits(truth, run, [yardstick.iou_type])
    return ReportPlan(config, runs, yardstick)


def _is_of_runs(section: RunsSection, storage: Storage) -> bool:
    """Whether a report is of a run, or of several, and not of a training."""
    return section.chain or bool(section.earlier) or storage.exists(RUN_KEY)


def write_report(plan: ReportPlan) -> tuple[str, list[str]]:
    """Writes the HTML report of a run, of several as one, of two side by side, or of a training, finished or not.

    Returns a line that says where it is, and notes.

    The report of a run holds its evaluation where there is one, and of an unfinished run what is committed so far.

    Raises:
        RunError: `report.evaluation` holds no figures.
    """
    config, runs = plan.config, plan.runs
    uri = config.run.uri.rstrip("/")
    beside, unfinished, notes = open_storage(uri, config.storage).uri.rstrip("/"), "", list[str]()
    build = partial(build_report, day=datetime.now(UTC).date())
    if runs:
        sections = [each for each in (config.run, config.run_b) if each is not None]
        notes = [note for section, run in zip(sections, runs, strict=True) for note in notes_on_runs(section, run)]
        missing = [_missing_shards(run) for run in runs]
        names = ("A: ", "B: ") if len(runs) == 2 else ("",)
        unfinished = "; ".join(name + part for name, part in zip(names, missing, strict=True) if part)
        html = build(
            runs[0],
            run_b=runs[1] if len(runs) == 2 else None,
            yardstick=plan.yardstick,
            evaluation=_evaluation_of(config, runs),
            unfinished=unfinished,
            sample=Sample(config.report.num_images, config.report.seed),
        )
        beside = runs[0].beside
    else:
        output = TrainingOutput(uri, config.storage)
        html = build_summary(output, _settings_of(output, config.storage))
    target = config.output.uri or f"{beside}.report.html"
    storage, key = open_file(target, config.storage)
    storage.write_bytes(key, html.encode("utf-8", "replace"))
    return f"report -> {target}" + (f"; the run is not finished: {unfinished}" if unfinished else ""), notes


def _settings_of(output: TrainingOutput, storage: StorageSettings) -> TrainConfig | None:
    """The settings of a training; None where they are none of this version's."""
    try:
        return TrainConfig.model_validate({**(output.read_config() or {}), "storage": storage})
    except ValueError:
        return None


def _missing_shards(run: AnyRun) -> str:
    """How much of an unfinished run is there, in words; "" for a finished one."""
    if run.sealed:
        return ""
    if isinstance(run, Runs):
        return "; ".join(f"{each.storage.uri}: {_missing_shards(each)}" for each in run.runs if not each.sealed)
    plan = read_plan(run.storage)
    if plan is None:
        return "its images are still being listed"
    return f"{len(run.files):,} of {counted(plan.num_shards, 'shard')} committed"


def _evaluation_of(config: ReportConfig, runs: Sequence[AnyRun]) -> MetricsJson | None:
    """The figures at `report.evaluation`, or of the evaluation beside the run; None where there is none beside it.

    Of two runs those of the second, which stand beside it, are joined.
    """
    evaluation_uri = config.report.evaluation
    found = [
        _read_figures(config, evaluation_uri or runs[0].beside + EVALUATION_SUFFIX),
        *(_read_figures(config, run.beside + EVALUATION_SUFFIX) for run in runs[1:]),
    ]
    if found[0] is None and evaluation_uri is not None:
        raise RunError(f"report.evaluation: {evaluation_uri} holds no {METRICS_JSON}")
    if len(found) == 2 and any(found):
        return side_by_side(found[0] or {}, found[1] or {})
    return found[0]


def _read_figures(config: ReportConfig, uri: str) -> MetricsJson | None:
    try:
        return json.loads(open_storage(uri, config.storage).read_bytes(METRICS_JSON))
    except FileNotFoundError:
        return None


def write_export(config: ExportConfig) -> tuple[str, Exported, list[str]]:
    """Writes a run, or several as one, in another tool's format; returns the target's URI, what was written, and notes.

    Raises:
        RunError: no finished run there.
        ConfigError: the format has no names or numbers for what is in the run.
    """
    run = open_finished(config.run, "run", config.storage)
    settings = config.export
    target = config.output.uri or f"{run.beside}.{settings.to}"
    notes = notes_on_runs(config.run, run)
    try:
        if settings.to == "coco-results":
            counts = export_results(run, open_storage(target, config.storage), min_score=settings.min_score or 0.0)
            return target, Exported(*counts, {}), notes
        exported = export_labels(
            run,
            Location(target, config.storage),
            settings.to,
            min_score=MIN_SCORE if settings.min_score is None else settings.min_score,
            photos=settings.photos,
            tolerance_px=settings.tolerance_px,
            storage=config.storage,
        )
    except (ExportError, AnnotationError) as error:
        raise ConfigError(f"export.to={settings.to}: {error}") from None
    return target, exported, notes


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
