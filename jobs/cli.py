"""The program: `maskfleet COMMAND --config FILE key=value ...`.

Exit codes: 0 done; 1 failed; 2 bad configuration or input, nothing started; 3 finished, but more images failed than
`segment.max_failed_fraction` allows; 4 a gate on quality failed.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from jobs.config import ConfigError, DemoConfig, SegmentConfig, is_override, load_config, to_yaml
from jobs.config_results import (
    CheckDataConfig,
    CompareConfig,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    HistoryConfig,
    ReportConfig,
    VerifyConfig,
)
from jobs.config_sweep import SweepConfig
from jobs.config_train import TrainConfig
from pipeline.storage import use_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train Mask R-CNN on a Ray cluster, segment a bucket of images into Parquet, query it with pandas.",
)

Config = TypeVar("Config", bound=BaseModel)
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; see configs/.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, over those of the file.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings as they would be used, and end.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and end.")]


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    TOO_MANY_FAILED = 3
    GATE = 4


@app.command()
def train(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Train a Mask R-CNN; run the same command again to resume."""
    settings = _settings(TrainConfig, config, words, print_config)
    from jobs.progress import ProgressLine
    from jobs.train import prepare_train, run_train

    plan = _checked(lambda: prepare_train(settings))
    if dry_run:
        _say(plan.describe())
        return
    with ProgressLine("train") as line:
        result = _run(lambda: run_train(plan, on_progress=line.take))
    _say(result.describe())


@app.command()
def sweep(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Train every point of a grid and make one table of it; run the same command again to go on."""
    settings = _settings(SweepConfig, config, words, print_config)
    from jobs.progress import ProgressLine
    from jobs.sweep import prepare_sweep, run_sweep

    plan = _checked(lambda: prepare_sweep(settings))
    if dry_run:
        _say(plan.describe())
        for trial in plan.trials:
            _say(f"  {trial.name}{'  (trained)' if trial.name in plan.finished else ''}")
        return
    with ProgressLine("sweep") as line:
        line.note(plan.describe())
        result = _run(lambda: run_sweep(plan, on_progress=line.show))
    _say(result.describe())
    if result.num_failed:
        raise typer.Exit(Exit.FAILED)


@app.command()
def segment(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Segment a folder of images into Parquet; run the same command again to resume."""
    settings = _settings(SegmentConfig, config, words, print_config)
    from jobs.progress import ProgressLine, describe
    from jobs.segment import failed_fraction, prepare_segment, run_segment

    plan = _checked(lambda: prepare_segment(settings))
    for note in plan.notes:
        _say(f"note: {note}")
    if dry_run:
        _say(f"would segment {plan.spec['input']['uri']} with {plan.checkpoint} into {settings.output.uri}")
        _say(f"run {plan.run_id}")
        return
    with ProgressLine("segment") as line:
        totals = _run(lambda: run_segment(plan, lambda progress: line.show(describe(progress))))
    _say(f"{totals['num_images']:,} images, {totals['num_instances']:,} instances -> {settings.output.uri}")
    _say("status: " + ", ".join(f"{status} {count:,}" for status, count in sorted(totals["statuses"].items())))
    if failed_fraction(totals) > settings.segment.max_failed_fraction:
        _say(
            f"{failed_fraction(totals):.1%} of the images failed; segment.max_failed_fraction allows "
            f"{settings.segment.max_failed_fraction:.1%}"
        )
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command()
def retry(words: Words = None, dry_run: DryRun = False) -> None:
    """Try again what failed in a finished run: `maskfleet retry RUN_URI`; nothing sealed is touched."""
    if not words or is_override(words[0]):
        _fail("retry: name the run first, as in: maskfleet retry RUN_URI", Exit.BAD_INPUT)
    uri, *overrides = words
    from jobs.progress import ProgressLine, describe
    from jobs.segment import prepare_retry, run_retry

    plan = _checked(lambda: prepare_retry(uri, overrides))
    if dry_run:
        _say(f"would try again what failed in run {plan.run_id} with {plan.checkpoint}")
        return
    with ProgressLine("retry") as line:
        statuses = _run(lambda: run_retry(plan, lambda progress: line.show(describe(progress))))
    if not statuses:
        _say("no image ended with a status that is tried again")
    else:
        _say("repaired shards: " + ", ".join(f"{status} {count:,}" for status, count in sorted(statuses.items())))


@app.command()
def evaluate(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Measure a run against ground truth: `maskfleet evaluate RUN_URI ground_truth.uri=instances.json`."""
    settings = _settings(EvaluateConfig, config, words, print_config, "run.uri")
    from jobs.evaluate import prepare_evaluate, run_evaluate, to_rich_tables

    plan = _checked(lambda: prepare_evaluate(settings))
    if dry_run:
        _say(f"would evaluate {settings.run.uri} against {settings.ground_truth.uri} into {plan.output.uri}")
        return
    metrics, reasons = _run(lambda: run_evaluate(plan))
    for table in to_rich_tables(metrics):
        _print_table(table)
    for note in metrics.notes:
        _say(f"note: {note}")
    _say(f"figures -> {plan.output.uri}")
    _gate(reasons)


@app.command()
def compare(
    words: Words = None,
    config: ConfigFile = None,
    ground_truth: Annotated[str | None, typer.Option("--ground-truth", help="Short for ground_truth.uri=.")] = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Compare two runs: `maskfleet compare RUN_A RUN_B --ground-truth instances.json`; without labels, their drift."""
    given = [] if ground_truth is None else [f"ground_truth.uri={ground_truth}"]
    settings = _settings(CompareConfig, config, words, print_config, "run_a.uri", "run_b.uri", extra=given)
    from jobs.compare import describe, prepare_compare, run_compare

    plan = _checked(lambda: prepare_compare(settings))
    if dry_run:
        _say(f"would compare {settings.run_a.uri} with {settings.run_b.uri}")
        return
    result, reasons = _run(lambda: run_compare(plan))
    _say(describe(result))
    _gate(reasons)


@app.command()
def history(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Print the trend of kept evaluations: `maskfleet history HISTORY_URI`; output.uri=FOLDER also plots it."""
    settings = _settings(HistoryConfig, config, words, print_config, "history.uri")
    from jobs.report import read_history

    if dry_run:
        _say(f"would read the evaluations kept in {settings.history.uri}")
        return
    table, plot = _run(lambda: read_history(settings))
    _say(table.to_string(index=False) if len(table) else f"no evaluation is kept in {settings.history.uri}")
    if plot is not None:
        _say(f"plot -> {plot}")


@app.command()
def report(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Write one HTML file with pictures of a run or a training: `maskfleet report RUN_URI`."""
    settings = _settings(ReportConfig, config, words, print_config, "run.uri")
    from jobs.report import write_report

    if dry_run:
        _say(f"would write a report of {settings.run.uri}")
        return
    _say(f"report -> {_run(lambda: write_report(settings))}")


@app.command()
def export(
    words: Words = None,
    config: ConfigFile = None,
    to: Annotated[str | None, typer.Option("--to", help="Short for export.to=.")] = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Write a run in another tool's form: `maskfleet export RUN_URI --to coco|coco-results|yolo|labelme|png`."""
    given = [] if to is None else [f"export.to={to}"]
    settings = _settings(ExportConfig, config, words, print_config, "run.uri", extra=given)
    from jobs.report import write_export

    if dry_run:
        _say(f"would export {settings.run.uri} to {settings.export.to}")
        return
    target, count = _run(lambda: write_export(settings))
    _say(f"{count:,} files -> {target}")


@app.command("check-data")
def check_data(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Say what in annotated photos would break training: `maskfleet check-data ANNOTATIONS`; 1 if something would."""
    settings = _settings(CheckDataConfig, config, words, print_config, "data.uri")
    from jobs.annotations import describe_report, run_check_data

    if dry_run:
        _say(f"would read every annotation and photo of {settings.data.uri}")
        return
    result = _checked(lambda: run_check_data(settings))
    _say(describe_report(result))
    if not result.ok:
        raise typer.Exit(Exit.FAILED)


@app.command()
def convert(
    words: Words = None,
    config: ConfigFile = None,
    to: Annotated[str | None, typer.Option("--to", help="Short for convert.to=.")] = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Write annotations in another format: `maskfleet convert ANNOTATIONS TARGET --to coco|via|voc|cityscapes|...`."""
    given = [] if to is None else [f"convert.to={to}"]
    settings = _settings(ConvertConfig, config, words, print_config, "data.uri", "output.uri", extra=given)
    from jobs.annotations import describe_conversion, run_convert

    if dry_run:
        _say(f"would convert {settings.data.uri} to {settings.convert.to} at {settings.output.uri}")
        return
    _say(describe_conversion(_checked(lambda: run_convert(settings)), settings.output.uri))


@app.command()
def verify(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Re-read a run and prove it, or name every fault: `maskfleet verify RUN_URI`."""
    settings = _settings(VerifyConfig, config, words, print_config, "run.uri")
    from pipeline.bulk.verify import verify_run
    from pipeline.manifest import open_run

    run = _checked(lambda: open_run(settings.run.uri))
    if dry_run:
        _say(f"would verify run {run.run_id} at {settings.run.uri}")
        return
    faults = _run(lambda: list(verify_run(run)))
    for fault in faults:
        _say(f"{fault.key}: {fault.reason}")
    if faults:
        _say(f"run {run.run_id}: {len(faults)} faults")
        raise typer.Exit(Exit.FAILED)
    totals = run.final or {}
    _say(f"run {run.run_id} is exact: {totals['num_images']:,} images, {totals['num_instances']:,} instances")


@app.command()
def demo(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Draw shapes, train on them, segment, evaluate and look: all of it, small, on this machine."""
    settings = _settings(DemoConfig, config, words, print_config)
    from jobs.demo import run_demo

    if dry_run:
        _say(f"would run the demo in {settings.output.uri}")
        return
    _run(lambda: run_demo(settings, say=_say, print_table=_print_table))


def main() -> None:
    """The entry point of `maskfleet` and `python -m jobs`."""
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", Exit.FAILED)


def _settings(
    kind: type[Config],
    file: Path | None,
    words: list[str] | None,
    print_config: bool,
    *positional: str,
    extra: Sequence[str] = (),
) -> Config:
    """The validated configuration; ends the program on a wrong one (2), or after printing it (0).

    Args:
        positional: the keys that leading words without '=' stand for.
        extra: words that options stand for.
    """
    overrides = list(words or [])
    for place, key in enumerate(positional):
        if place < len(overrides) and not is_override(overrides[place]):
            overrides[place] = f"{key}={overrides[place]}"
    overrides += extra
    settings = _checked(lambda: load_config(kind, file, overrides))
    if hasattr(settings, "storage"):
        _checked(lambda: use_settings(settings.storage.to_settings()))
    if print_config:
        sys.stdout.write(to_yaml(settings))
        raise typer.Exit(Exit.DONE)
    return settings


def _checked(check: Callable[[], Any]) -> Any:
    """Runs what comes before anything starts: a wrong value or a missing file ends with exit code 2."""
    try:
        return check()
    except (ValueError, OSError) as error:
        _fail(_reason(error), Exit.BAD_INPUT)


def _run(work: Callable[[], Any]) -> Any:
    """Runs the work itself; what was only found out then is still a wrong input (2), the rest is a failure (1)."""
    try:
        return work()
    except ConfigError as error:
        _fail(_reason(error), Exit.BAD_INPUT)
    except (ValueError, OSError) as error:
        _fail(_reason(error), Exit.FAILED)
    except Exception as error:
        traceback.print_exc()
        _fail(_reason(error), Exit.FAILED)


def _gate(reasons: list[str]) -> None:
    """Ends with exit code 4 where a gate failed."""
    for reason in reasons:
        sys.stderr.write(f"maskfleet: gate failed: {reason}\n")
    if reasons:
        raise typer.Exit(Exit.GATE)


def _reason(error: BaseException) -> str:
    """What went wrong in one sentence; of an error that crossed the cluster, the original one."""
    error = getattr(error, "cause", None) or error
    text = str(error).strip()
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _fail(reason: str, code: Exit) -> None:
    sys.stderr.write(f"maskfleet: {reason}\n")
    raise typer.Exit(code)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console(width=110).print(table)
