"""The program: `maskfleet COMMAND --config FILE key=value ...`.

Exit codes: 0 done; 1 failed; 2 bad configuration or input, nothing started; 3 finished, but more images failed than
`segment.max_failed_fraction` allows; 4 a gate on quality failed.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from jobs.commands import COMMANDS, read_settings
from jobs.home import VERSION

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; see configs/.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, over those of the file.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings as they would be used, and end.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and end.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of its dashboard, as http://head:8265; else $RAY_API_SERVER_ADDRESS, or here."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `maskfleet jobs list` names it.")]

jobs_app = typer.Typer(no_args_is_help=True, help="The jobs of a cluster: list, status, logs, stop.")
app.add_typer(jobs_app, name="jobs")


def _show_version(wanted: bool) -> None:
    if wanted:
        _say(f"maskfleet {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Train Mask R-CNN on a Ray cluster, segment a bucket of images into Parquet, query it with pandas."""


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
    settings = _settings("train", config, words, print_config)
    from jobs.progress import ProgressLine
    from jobs.training.train import prepare_train, run_train

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
    settings = _settings("sweep", config, words, print_config)
    from jobs.progress import ProgressLine
    from jobs.sweep.run import prepare_sweep, run_sweep

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
    words: Words = None,
    config: ConfigFile = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")] = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Segment a folder of images into Parquet; run the same command again to resume."""
    settings = _settings("segment", config, words, print_config)
    from jobs.profile import describe_profile
    from jobs.progress import ProgressLine, describe
    from jobs.segment import failed_fraction, prepare_segment, run_segment
    from pipeline.bulk.progress import Progress

    plan = _checked(lambda: prepare_segment(settings))
    for note in plan.notes:
        _say(f"note: {note}")
    if dry_run:
        _say(f"would segment {plan.spec['input']['uri']} with {plan.checkpoint} into {settings.output.uri}")
        _say(f"run {plan.run_id}")
        return
    states: list[Progress] = []

    def show(progress: Progress) -> None:
        states[:] = [progress]
        line.show(describe(progress))

    with ProgressLine("segment") as line:
        totals = _run(lambda: run_segment(plan, show))
    _say(f"{totals['num_images']:,} images, {totals['num_instances']:,} instances -> {settings.output.uri}")
    _say("status: " + ", ".join(f"{status} {count:,}" for status, count in sorted(totals["statuses"].items())))
    if profile:
        _say(describe_profile(states[-1], settings))
    if failed_fraction(totals) > settings.segment.max_failed_fraction:
        _say(
            f"{failed_fraction(totals):.1%} of the images failed; segment.max_failed_fraction allows "
            f"{settings.segment.max_failed_fraction:.1%}"
        )
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command()
def retry(words: Words = None, dry_run: DryRun = False) -> None:
    """Try again what failed in a finished run: `maskfleet retry RUN_URI`; nothing sealed is touched."""
    from jobs.config.load import is_override

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
    settings = _settings("evaluate", config, words, print_config)
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
    settings = _settings("compare", config, words, print_config, ground_truth=ground_truth)
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
    settings = _settings("history", config, words, print_config)
    from jobs.report import read_history, to_rich_history

    if dry_run:
        _say(f"would read the evaluations kept in {settings.history.uri}")
        return
    table, plot = _run(lambda: read_history(settings))
    if len(table):
        _print_table(to_rich_history(table))
    else:
        _say(f"no evaluation is kept in {settings.history.uri}")
    if plot is not None:
        _say(f"plot -> {plot}")


@app.command()
def report(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Write one HTML file with pictures of a run or a training: `maskfleet report RUN_URI`."""
    settings = _settings("report", config, words, print_config)
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
    settings = _settings("export", config, words, print_config, to=to)
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
    settings = _settings("check-data", config, words, print_config)
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
    settings = _settings("convert", config, words, print_config, to=to)
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
    settings = _settings("verify", config, words, print_config)
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
    settings = _settings("demo", config, words, print_config)
    from jobs.demo import run_demo

    if dry_run:
        _say(f"would run the demo in {settings.output.uri}")
        return
    _run(lambda: run_demo(settings, say=_say, print_table=_print_table))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="train, segment, evaluate, retry, ...")],
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Show the log and end as the job does; or not.")] = True,
    env: Annotated[list[str] | None, typer.Option("--env", help="A variable to hand over: NAME or NAME=VALUE.")] = None,
    credentials: Annotated[bool, typer.Option(help="Hand over the AWS_* credentials of this environment.")] = True,
    dependencies: Annotated[
        Literal["cluster", "pinned"], typer.Option(help="Take what the nodes have, or install this machine's versions.")
    ] = "cluster",
    driver_cpus: Annotated[float, typer.Option(min=0, help="Cores for the command itself; 0: on the head node.")] = 0,
) -> None:
    """Run a command as a job of a cluster: `maskfleet submit segment --address http://head:8265` and its own words.

    The same submission again is the same job while that runs or has succeeded, else its next attempt, which resumes.
    """
    from jobs.cluster.job_package import from_settings, from_words, handed_environment
    from jobs.cluster.submit import SUCCEEDED, Jobs
    from jobs.config.load import is_override

    environment = _checked(lambda: handed_environment(env or [], credentials=credentials))
    line = _line_of(command, context.args)
    words, file = line.pop("words") or [], line.pop("config", None)
    for option in ("dry_run", "print_config"):
        if line.pop(option, False):
            _fail(f"submit: --{option.replace('_', '-')} is for the command itself; run it here", Exit.BAD_INPUT)
    if command == "retry":
        if not words or is_override(words[0]):
            _fail("retry: name the run first, as in: maskfleet submit retry RUN_URI", Exit.BAD_INPUT)
        submission = from_words(command, words, environment)
    else:
        # Options that stand for no setting are the command's own switches; those that are set go along.
        own = COMMANDS[command].options
        switches = [f"--{name.replace('_', '-')}" for name, value in line.items() if name not in own and value]
        given = {name: value for name, value in line.items() if name in own}
        settings = _checked(lambda: read_settings(command, file, words, **given))
        submission = from_settings(command, settings, environment, switches)
    jobs = _checked(lambda: Jobs(address))
    if warning := jobs.warning():
        sys.stderr.write(f"maskfleet: warning: {warning}\n")
    for place in submission.local_places():
        _say(f"note: {place} is a path: every node must see it there")
    if submission.environment:
        _say(f"handed over, unseen: {', '.join(sorted(submission.environment))}")
    state, is_new = _run(lambda: jobs.submit(submission, dependencies=dependencies, driver_cpus=driver_cpus))
    done = "is submitted" if is_new else "has succeeded already" if state.status == SUCCEEDED else "is running already"
    _say(f"job {state.job_id} {done}")
    if not wait:
        _say(f"see: maskfleet jobs logs {state.job_id} --follow --address {jobs.address}")
    elif state.status != SUCCEEDED:
        _follow(jobs, state.job_id)


@app.command()
def schedule(
    words: Words = None,
    config: ConfigFile = None,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Evaluate and segment at times: `maskfleet schedule --config configs/schedule/nightly.yaml`.

    Any number of schedulers may share one state. With --once: 1 when a tick failed, 4 when a gate did.
    """
    settings = _settings("schedule", config, words, print_config)
    from jobs.schedule.scheduler import Scheduler, describe_schedule, run_forever, run_once
    from jobs.schedule.tasks import Programs, credentials_of

    if dry_run:
        _say(describe_schedule(settings))
        return
    runner = Programs(credentials_of(settings), _say)
    scheduler = _checked(lambda: Scheduler(settings, _say))
    if not once:
        _say(describe_schedule(settings))
        _run(lambda: run_forever(scheduler, runner))
    outcomes = {ended.outcome for ended in _run(lambda: run_once(scheduler, runner))}
    if not outcomes:
        _say("nothing is due")
    if "failed" in outcomes:
        raise typer.Exit(Exit.FAILED)
    if "gate_failed" in outcomes:
        raise typer.Exit(Exit.GATE)


@app.command()
def manifests(
    words: Words = None, config: ConfigFile = None, print_config: PrintConfig = False, dry_run: DryRun = False
) -> None:
    """Write files for KubeRay and Ray's cluster launcher: `maskfleet manifests --config configs/manifests/lab.yaml`."""
    settings = _settings("manifests", config, words, print_config)
    from jobs.cluster.manifests import write_manifests

    if config is None:
        _fail("manifests: --config is missing; give the file that describes the cluster", Exit.BAD_INPUT)
    if dry_run:
        _say(f"would write manifests into {settings.output.uri}")
        return
    names = _checked(lambda: write_manifests(settings, config))
    _say(f"{', '.join(names)} -> {settings.output.uri}")


@jobs_app.command("list")
def list_jobs(address: Address = None) -> None:
    """One line for each job of a cluster, oldest first."""
    from jobs.cluster.submit import Jobs

    jobs = _checked(lambda: Jobs(address))
    for state in _run(jobs.list):
        _say(state.describe())


@jobs_app.command("status")
def job_status(job_id: JobId, address: Address = None) -> None:
    """What became of a job; ends with 0 whatever that is."""
    from jobs.cluster.submit import SUCCEEDED, Jobs, reason_of

    jobs = _checked(lambda: Jobs(address))
    state = _run(lambda: jobs.state(job_id))
    _say(state.describe())
    if state.is_over and state.status != SUCCEEDED:
        _say(f"reason: {reason_of(state, _run(lambda: jobs.log(job_id)))}")


@jobs_app.command("logs")
def job_logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as the log grows, and end as the job does.")] = False,
) -> None:
    """What a job has written."""
    from jobs.cluster.submit import Jobs

    jobs = _checked(lambda: Jobs(address))
    if follow:
        _follow(jobs, job_id)
    else:
        sys.stdout.write(_run(lambda: jobs.log(job_id)))


@jobs_app.command("stop")
def stop_job(job_id: JobId, address: Address = None) -> None:
    """Stop a job and wait until it has ended; submitting it again goes on where it was."""
    from jobs.cluster.submit import Jobs

    jobs = _checked(lambda: Jobs(address))
    _say(_run(lambda: jobs.stop(job_id)).describe())


def main() -> None:
    """The entry point of `maskfleet` and `python -m maskfleet`."""
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", Exit.FAILED)


def _settings(name: str, file: Path | None, words: list[str] | None, print_config: bool, **options: str | None) -> Any:
    """The validated configuration of a command; ends the program on a wrong one (2), or after printing it (0).

    Args:
        options: the command's own options that stand for settings.
    """
    settings = _checked(lambda: read_settings(name, file, words, **options))
    from jobs.config.load import to_yaml
    from pipeline.storage.stores import use_settings

    if hasattr(settings, "storage"):
        _checked(lambda: use_settings(settings.storage.to_settings()))
    if print_config:
        sys.stdout.write(to_yaml(settings))
        raise typer.Exit(Exit.DONE)
    return settings


def _line_of(command: str, words: list[str]) -> dict[str, Any]:
    """The rest of a submission's line as the command itself would read it; ends with 2 where it would not."""
    from jobs.cluster.job_package import SUBMITTED

    if command not in SUBMITTED:
        _fail(f"submit: {command!r} is not allowed; allowed are {', '.join(SUBMITTED)}", Exit.BAD_INPUT)
    group: Any = typer.main.get_command(app)
    return dict(group.commands[command].make_context(f"maskfleet submit {command}", list(words)).params)


def _follow(jobs: Any, job_id: str) -> None:
    """Shows a job's log and ends as it does, its reason on the last line."""
    from jobs.cluster.submit import SUCCEEDED, reason_of

    ended = ""

    def write(text: str) -> None:
        nonlocal ended
        ended = (ended + text)[-100_000:]
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        state = _run(lambda: jobs.follow(job_id, write))
    except KeyboardInterrupt:
        _fail(f"job {job_id} goes on; see: maskfleet jobs status {job_id}", Exit.FAILED)
    if ended and not ended.endswith("\n"):
        _say("")
    if state.status == SUCCEEDED:
        _say(f"job {job_id} succeeded")
        return
    code = state.exit_code if state.exit_code and state.exit_code > 0 else Exit.FAILED
    sys.stderr.write(f"maskfleet: job {job_id} {state.status.lower()}, exit code {code}: {reason_of(state, ended)}\n")
    raise typer.Exit(code)


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
    except (ValueError, OSError) as error:
        from jobs.config.load import ConfigError

        _fail(_reason(error), Exit.BAD_INPUT if isinstance(error, ConfigError) else Exit.FAILED)
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


def _fail(reason: str, code: Exit) -> NoReturn:
    sys.stderr.write(f"maskfleet: {reason}\n")
    raise typer.Exit(code)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console(width=110).print(table)
