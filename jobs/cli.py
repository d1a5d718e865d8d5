"""The program: `maskfleet COMMAND --config FILE key=value ...`.

Exit codes: 0 done; 1 failed; 2 bad configuration or input, nothing started; 3 finished, but more images failed than
`segment.max_failed_fraction` allows; 4 a gate on quality failed; 130 interrupted, the last line says how to go on.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cluster.cli import jobs_app, submit
from jobs.commands import COMMANDS, CONFIGURED, print_settings, read_settings, split_retry
from jobs.config.completion import complete_command, complete_config, complete_section, complete_words
from jobs.home import VERSION
from jobs.interrupt import Interrupts
from jobs.terminal import (
    Exit,
    check_or_refuse,
    counted,
    end_at_gate,
    fail,
    print_table,
    refuse_name,
    run_or_fail,
    say,
    table_width,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file of settings, or the name of one of configs/.", autocompletion=complete_config
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings, explained, as a file for --config; then end.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and end.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress, only the result.")]


_WORDS = "Places and settings, in any order; they win over those of the file."

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def configured(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function the command `name` of the program, with what all commands of COMMANDS have in common.

    The command takes `key=value` words, --config, --print-config, --dry-run and --quiet, and the function's own
    options. The function gets its validated settings first, then those of these that it has a parameter for. Wrong
    settings end the program (2) before, --print-config (0) after they are printed.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        own = [*inspect.signature(body, eval_str=True).parameters.values()][1:]
        common: dict[str, tuple[Any, Any]] = {
            "words": (
                Annotated[
                    list[str] | None,
                    typer.Argument(metavar=COMMANDS[name].metavar, help=_WORDS, autocompletion=complete_words),
                ],
                None,
            ),
            "config": (ConfigFile, None),
            "print_config": (PrintConfig, False),
            "dry_run": (DryRun, False),
            "quiet": (Quiet, False),
        }
        parameters = [
            *(
                Parameter(key, Parameter.KEYWORD_ONLY, default=value, annotation=kind)
                for key, (kind, value) in common.items()
            ),
            *(each.replace(kind=Parameter.KEYWORD_ONLY) for each in own if each.name not in common),
        ]

        def command(**values: Any) -> None:
            file, words = values["config"], values["words"]
            if values["print_config"]:
                sys.stdout.write(check_or_refuse(lambda: print_settings(name, file, words)))
                return
            settings = check_or_refuse(lambda: read_settings(name, file, words))
            body(settings, **{each.name: values[each.name] for each in own})

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        # Unknown options arrive among the words, and are refused with the key that may be meant.
        unknown = {"ignore_unknown_options": True}
        app.command(name, help=inspect.getdoc(body), epilog=_epilog(name), context_settings=unknown)(command)
        return body

    return register


def _epilog(name: str) -> str:
    return f"Settings and their meaning: maskfleet settings {name}"


def _end_dry_run(
    dry_run: bool, text: str | Callable[[], str], check_cluster: Callable[[], None] = lambda: None
) -> None:
    """Ends the command, where it is a dry run, with what it would do, or with 2 where it or its cluster cannot."""
    if dry_run:
        check_or_refuse(check_cluster)
        say(text if isinstance(text, str) else check_or_refuse(text))
        raise typer.Exit


def _say_notes(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"maskfleet {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Train Mask R-CNN on a Ray cluster, segment a bucket of images into Parquet, query it with pandas."""


@configured("train")
def train(settings: Any, dry_run: bool, quiet: bool) -> None:
    """Train a Mask R-CNN; run the same command again to resume."""
    from jobs.progress import ProgressLine
    from jobs.training.train import prepare_train, run_train

    plan = check_or_refuse(lambda: prepare_train(settings))
    _end_dry_run(dry_run, "\n".join([*(f"note: {note}" for note in plan.notes), plan.describe()]), plan.check_cluster)
    line = ProgressLine("train", quiet=quiet)
    result = run_or_fail(lambda: run_train(plan, on_progress=line.take), line)
    say(result.describe())


@configured("sweep")
def sweep(settings: Any, dry_run: bool, quiet: bool) -> None:
    """Train every point of a grid and make one table of it; run the same command again to go on."""
    from jobs.progress import ProgressLine
    from jobs.sweep.run import prepare_sweep, run_sweep

    plan = check_or_refuse(lambda: prepare_sweep(settings))
    names = (f"  {trial.name}{'  (trained)' if trial.name in plan.finished else ''}" for trial in plan.trials)
    _end_dry_run(dry_run, "\n".join([plan.describe(), *names]), plan.check_cluster)
    line = ProgressLine("sweep", quiet=quiet)
    line.note(plan.describe())
    result = run_or_fail(lambda: run_sweep(plan, on_progress=line.show, on_note=line.note), line)
    say(result.describe())
    if result.num_failed:
        raise typer.Exit(Exit.FAILED)


@configured("quantize")
def quantize(settings: Any, dry_run: bool, quiet: bool) -> None:
    """Make a checkpoint for segment.mode=int8, calibrated on photos: `maskfleet quantize model.checkpoint=coco ...`."""
    from jobs.progress import ProgressLine
    from jobs.training.quantize import prepare_quantize, run_quantize  # torch

    plan = check_or_refuse(lambda: prepare_quantize(settings))
    _say_notes(plan.notes)
    _end_dry_run(dry_run, plan.describe)
    line = ProgressLine("quantize", quiet=quiet)
    result = run_or_fail(lambda: run_quantize(plan, line), line)
    say(result.describe())
    end_at_gate([] if result.reason is None else [result.reason])
    say(f"checkpoint -> {settings.output.uri}; to use it: segment.mode=int8, predict.mode=int8")


@configured("segment")
def segment(
    settings: Any,
    dry_run: bool,
    quiet: bool,
    profile: Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")] = False,
) -> None:
    """Segment a folder, bucket, list or tar file of images into Parquet; run the same command again to resume."""
    from jobs.profile import describe_profile
    from jobs.progress import ProgressLine
    from jobs.segment import prepare_segment, run_segment
    from pipeline.bulk.progress import Progress

    plan = check_or_refuse(lambda: prepare_segment(settings))
    _say_notes(plan.notes)
    _end_dry_run(dry_run, plan.describe, plan.check_cluster)
    line, states = ProgressLine("segment", quiet=quiet), list[Progress]()

    def show(progress: Progress) -> None:
        states[:] = [progress]
        line.show_run(progress)

    totals = run_or_fail(lambda: run_segment(plan, show, say), line)
    found = f"{counted(totals.num_images, 'image')}, {counted(totals.num_instances, 'instance')}"
    say(f"{found} -> {settings.output.uri}")
    say("status: " + ", ".join(f"{status} {count:,}" for status, count in sorted(totals.statuses.items())))
    if profile:
        say(describe_profile(states[-1], settings))
    allowed = settings.segment.max_failed_fraction
    if totals.failed_fraction > allowed:
        say(f"{totals.failed_fraction:.1%} of the images failed; segment.max_failed_fraction allows {allowed:.1%}")
    warn_of_failures(totals.statuses, settings.output.uri)
    if totals.failed_fraction > allowed:
        raise typer.Exit(Exit.TOO_MANY_FAILED)


def warn_of_failures(statuses: Mapping[str, int], uri: str) -> None:
    """Says so, in the last line, where more than half of the images failed."""
    from pipeline.schema import OK

    num_images = sum(statuses.values())
    if (num_failed := num_images - statuses.get(OK, 0)) * 2 > num_images:
        say(
            f"WARNING: {num_failed:,} of {counted(num_images, 'image')} FAILED; "
            f"status and error in {uri}/images say why, as does: maskfleet report {uri}"
        )


@configured("predict")
def predict(settings: Any, dry_run: bool, quiet: bool) -> None:
    """Segment a few photos without a cluster, with pictures: `maskfleet predict PHOTO... model.checkpoint=coco`."""
    from jobs.config.predict import find_photos

    photos = check_or_refuse(lambda: find_photos(settings))
    from jobs.predict import prepare_predict, run_predict, to_rich_table  # torch
    from jobs.progress import ProgressLine

    plan = check_or_refuse(lambda: prepare_predict(settings, photos))
    _end_dry_run(dry_run, f"would predict {counted(len(plan.photos), 'photo')} with {settings.model.checkpoint}")
    line = ProgressLine("predict", quiet=quiet)

    def show(num_done: int, num_photos: int) -> None:
        line.show(f"{num_done:,}/{num_photos:,} photos")

    prediction = run_or_fail(lambda: run_predict(plan, show), line)
    print_table(to_rich_table(prediction))
    found = f"{counted(len(prediction.images), 'photo')}, {counted(len(prediction.instances), 'instance')}"
    say(f"{found} -> {prediction.output_uri}")
    if prediction.num_failed:
        say(f"{counted(prediction.num_failed, 'photo')} could not be used")
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command(epilog=_epilog("retry"))
def retry(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN key=value", help=_WORDS, autocompletion=complete_words),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Try again what failed in a finished run; nothing sealed is touched."""
    uri, overrides = check_or_refuse(lambda: split_retry(words))
    access = [word for word in overrides if word.startswith("storage.")]
    settings = check_or_refuse(lambda: read_settings("verify", None, [uri, *access]))
    from pipeline.manifest import open_run

    run = check_or_refuse(lambda: open_run(settings.run.uri, settings.storage))
    from jobs.progress import ProgressLine
    from jobs.segment import describe_retry, prepare_retry, run_retry  # torch

    plan = check_or_refuse(lambda: prepare_retry(uri, overrides))
    _end_dry_run(dry_run, lambda: describe_retry(run, plan), plan.check_cluster)
    line = ProgressLine("retry", quiet=quiet)
    statuses = run_or_fail(lambda: run_retry(plan, line.show_run), line)
    if not statuses:
        say("no image ended with a status that is tried again")
        return
    say("repaired shards: " + ", ".join(f"{status} {count:,}" for status, count in sorted(statuses.items())))
    warn_of_failures(statuses, uri)


@configured("evaluate")
def evaluate(settings: Any, dry_run: bool) -> None:
    """Measure a run, or several, against ground truth: `maskfleet evaluate RUN ground_truth.uri=instances.json`."""
    from jobs.evaluate import (
        THRESHOLDS_JSON,
        asks_for_thresholds,
        prepare_evaluate,
        run_evaluate,
        to_rich_tables,
        to_thresholds_table,
    )

    plan = check_or_refuse(lambda: prepare_evaluate(settings))
    text = f"would evaluate {settings.run.uri} against {settings.ground_truth.uri} into {plan.output.uri}"
    _end_dry_run(dry_run, text, plan.check_cluster)
    metrics, reasons = run_or_fail(lambda: run_evaluate(plan))
    for table in to_rich_tables(metrics):
        print_table(table)
    if asks_for_thresholds(settings):
        print_table(to_thresholds_table(metrics, settings.evaluate))
        say(f"to use them: maskfleet segment ... segment.score_thresholds={plan.output.uri_of(THRESHOLDS_JSON)}")
    _say_notes(metrics.notes)
    say(f"figures -> {plan.output.uri}")
    end_at_gate(reasons)


@configured("compare")
def compare(settings: Any, dry_run: bool) -> None:
    """Compare two runs, by AP with ground_truth.uri=instances.json, else by the drift of their outputs."""
    from jobs.compare import describe, prepare_compare, run_compare

    plan = check_or_refuse(lambda: prepare_compare(settings))
    _end_dry_run(dry_run, f"would compare {settings.run_a.uri} with {settings.run_b.uri}")
    compared = run_or_fail(lambda: run_compare(plan))
    say(describe(compared))
    say(f"side by side: {plan.report_command}")
    _say_notes(run_or_fail(plan.notes))
    end_at_gate(compared.reasons)


@configured("history")
def history(settings: Any, dry_run: bool) -> None:
    """Print the trend of kept evaluations: `maskfleet history HISTORY`; output.uri=FOLDER also plots it."""
    from jobs.report import describe_history, read_history, to_rich_history

    _end_dry_run(dry_run, lambda: describe_history(settings))
    table, plot = run_or_fail(lambda: read_history(settings))
    print_table(to_rich_history(table, table_width()))
    if plot is not None:
        say(f"plot -> {plot}")


@configured("report")
def report(settings: Any, dry_run: bool) -> None:
    """Write one HTML file with pictures of a run, two (run_b.uri=RUN_B) or a training: `maskfleet report RUN`."""
    from jobs.report import prepare_report, write_report

    plan = check_or_refuse(lambda: prepare_report(settings))
    _end_dry_run(dry_run, plan.describe)
    written, notes = run_or_fail(lambda: write_report(plan))
    _say_notes(notes)
    say(written)


@configured("export")
def export(settings: Any, dry_run: bool) -> None:
    """Write a run, or several, as labels to correct (export.to=labelstudio, cvat, coco ...), or as coco-results."""
    from jobs.report import check_source, write_export

    check_or_refuse(lambda: check_source(settings))
    _end_dry_run(dry_run, f"would export {settings.run.uri} to {settings.export.to}")
    target, exported, notes = run_or_fail(lambda: write_export(settings))
    _say_notes([*(f"{note}: {count:,}" for note, count in exported.notes.items()), *notes])
    say(f"{counted(exported.num_images, 'image')}, {counted(exported.num_instances, 'instance')} -> {target}")


@configured("check-data")
def check_data(settings: Any, dry_run: bool) -> None:
    """Check annotated photos before a training: `maskfleet check-data ANNOTATIONS`; ends with 2 if it would fail."""
    from jobs.annotations import describe_annotations, describe_report, run_check_data

    _end_dry_run(dry_run, lambda: f"would check {describe_annotations(settings)}")
    result = check_or_refuse(lambda: run_check_data(settings))
    say(describe_report(result))
    if not result.ok:
        raise typer.Exit(Exit.BAD_INPUT)


@configured("convert")
def convert(settings: Any, dry_run: bool) -> None:
    """Write annotations in another format: `maskfleet convert ANNOTATIONS TARGET convert.to=FORMAT`."""
    from jobs.annotations import describe_annotations, describe_conversion, run_convert

    target = f"to {settings.convert.to} at {settings.output.uri}"
    _end_dry_run(dry_run, lambda: f"would convert {describe_annotations(settings)} {target}")
    say(describe_conversion(check_or_refuse(lambda: run_convert(settings)), settings.output.uri))


@configured("verify")
def verify(settings: Any, dry_run: bool) -> None:
    """Read a run again, check every file and row, and name each fault: `maskfleet verify RUN`."""
    from pipeline.bulk.verify import verify_run
    from pipeline.manifest import open_run

    run = check_or_refuse(lambda: open_run(settings.run.uri, settings.storage))
    _end_dry_run(dry_run, f"would verify run {run.run_id} at {settings.run.uri}")
    faults = run_or_fail(lambda: list(verify_run(run)))
    for fault in faults:
        say(f"{fault.key}: {fault.reason}")
    if faults:
        say(f"run {run.run_id}: {counted(len(faults), 'fault')}")
        raise typer.Exit(Exit.FAILED)
    # As readers see it: run.final has the totals from before `retry`.
    num_images = sum(file.rows for file in run.images_files())
    num_instances = sum(file.rows for file in run.instances_files())
    repaired = f", {counted(run.num_repairs, 'repair')}" if run.num_repairs else ""
    say(f"run {run.run_id} is exact: {counted(num_images, 'image')}, {counted(num_instances, 'instance')}{repaired}")


@configured("demo")
def demo(settings: Any, dry_run: bool) -> None:
    """Draw shapes, train on them, segment, evaluate and report: all of it, small, on this machine."""
    _end_dry_run(dry_run, f"would run the demo in {settings.output.uri}")
    from jobs.demo import run_demo  # torch

    run_or_fail(lambda: run_demo(settings, say=say, print_table=print_table))


@configured("schedule")
def schedule(
    settings: Any,
    dry_run: bool,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
) -> None:
    """Segment and evaluate on a schedule: `maskfleet schedule --config configs/schedule/nightly.yaml`.

    Any number of schedulers may share one state. With --once: 1 when a tick failed, 4 when a gate did.
    """
    from jobs.schedule.scheduler import Scheduler, describe_schedule, run_forever, run_once
    from jobs.schedule.tasks import Programs, credentials_of

    _end_dry_run(dry_run, describe_schedule(settings))
    runner = Programs(credentials_of(settings), say)
    scheduler = check_or_refuse(lambda: Scheduler(settings, say))
    if not once:
        say(describe_schedule(settings))
        run_or_fail(lambda: run_forever(scheduler, runner))
    outcomes = {ended.outcome for ended in run_or_fail(lambda: run_once(scheduler, runner))}
    if not outcomes:
        say("nothing is due")
    if "failed" in outcomes:
        raise typer.Exit(Exit.FAILED)
    if "gate_failed" in outcomes:
        raise typer.Exit(Exit.GATE)


@configured("manifests")
def manifests(settings: Any, dry_run: bool, config: Path | None) -> None:
    """Write files for KubeRay and Ray's cluster launcher: `maskfleet manifests --config configs/manifests/lab.yaml`."""
    from jobs.cluster.manifests import write_manifests
    from jobs.config.load import find_config

    if config is None:
        fail("manifests: --config is missing; give the file that describes the cluster", Exit.BAD_INPUT)
    _end_dry_run(dry_run, f"would write manifests into {settings.output.uri}")
    names = check_or_refuse(lambda: write_manifests(settings, find_config(config, "manifests")))
    say(f"{', '.join(names)} -> {settings.output.uri}")


@app.command("settings")
def show_settings(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="Such as train or segment.", autocompletion=complete_command)
    ],
    section: Annotated[
        str,
        typer.Argument(
            metavar="[SECTION]", help="Such as train or model.spec; else all.", autocompletion=complete_section
        ),
    ] = "",
) -> None:
    """Print the settings of a command: key, default, type, range and meaning; docs/settings.md has all."""
    from jobs.config.describe import settings_of, to_text, within

    if command not in CONFIGURED:
        refuse_name("settings: no command", command, CONFIGURED)
    settings = settings_of(CONFIGURED[command].config)
    found = within(settings, section) if section else settings
    if not found:
        refuse_name(f"settings: {command} has no section", section, dict.fromkeys(each.section for each in settings))
    say(to_text(found))


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)
app.add_typer(jobs_app, name="jobs")


def main() -> None:
    """The entry point of `maskfleet` and `python -m maskfleet`."""
    interrupts = Interrupts(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    if "--version" in sys.argv:  # wherever it stands
        sys.argv[1:] = ["--version"]
    # Ray, which reads it as it is imported, would start another one for a thread that outlives its shutdown.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # closed by whoever started the program
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        interrupts.listen()
        app()
    except BaseException as error:  # typer and others turn an interrupt into errors of their own
        if interrupts.first is not None and getattr(error, "code", Exit.INTERRUPTED) != Exit.DONE:
            interrupts.end()
        if isinstance(error, OSError):  # all others have ended in words
            os.write(2, f"maskfleet: what is printed cannot be written: {error.strerror}\n".encode())
            os._exit(Exit.FAILED)  # Python would try once more to write it
        if isinstance(error, SystemExit):
            interrupts.finish(error.code if isinstance(error.code, int) else Exit.DONE)
        raise
