"""The program: `maskfleet COMMAND --config FILE key=value ...`.

Exit codes: 0 done; 1 failed; 2 bad configuration or input, nothing started; 3 finished, but more images failed than
`segment.max_failed_fraction` allows; 4 a gate on quality failed; 130 interrupted, the last line says how to go on.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.commands import COMMANDS, read_settings
from jobs.home import VERSION
from jobs.interrupt import Interrupted, Interrupts
from jobs.terminal import Exit, check_or_refuse, counted, end_at_gate, fail, print_table, run_or_fail, say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; see configs/.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, over those of the file.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings as they would be used, and end.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress, only the result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and end.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of its dashboard, as http://head:8265; else $RAY_API_SERVER_ADDRESS, or here."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `maskfleet jobs list` names it.")]

jobs_app = typer.Typer(no_args_is_help=True, help="The jobs of a cluster: list, status, logs, stop.")
app.add_typer(jobs_app, name="jobs")


def configured(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function the command `name` of the program, with what all commands of COMMANDS have in common.

    The command takes `key=value` words, --config, --print-config and --dry-run, and the function's own options. The
    function gets its validated settings first, then `dry_run`, its own options, and `config`, the file of --config,
    where it has a parameter of that name. Wrong settings end the program (2) before, --print-config (0) after they are
    printed.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        own = [*inspect.signature(body, eval_str=True).parameters.values()][1:]
        options = [each for each in own if each.name not in ("dry_run", "config")]
        common = [
            ("words", Words, None),
            ("config", ConfigFile, None),
            ("print_config", PrintConfig, False),
            ("dry_run", DryRun, False),
        ]
        parameters = [
            Parameter(key, Parameter.KEYWORD_ONLY, default=default, annotation=kind) for key, kind, default in common
        ]
        parameters[2:2] = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in options]

        def command(**values: Any) -> None:
            shorthands = {option: values[option] for option in COMMANDS[name].options}
            settings = _settings(name, values["config"], values["words"], **shorthands)
            if values["print_config"]:
                from jobs.config.load import to_yaml

                sys.stdout.write(to_yaml(settings))
                raise typer.Exit(Exit.DONE)
            body(settings, **{each.name: values[each.name] for each in own if each.name in values})

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(name, help=inspect.getdoc(body), epilog=f"Settings and their meaning: maskfleet settings {name}")(
            command
        )
        return body

    return register


def _settings(name: str, file: Path | None, words: list[str] | None, **options: str | None) -> Any:
    """The validated configuration of a command, whose storage settings this process then uses; ends with 2 on a wrong
    one. `options` are the command's own that stand for settings."""
    settings = check_or_refuse(lambda: read_settings(name, file, words, **options))
    from pipeline.storage.stores import use_settings

    if hasattr(settings, "storage"):
        use_settings(settings.storage)
    return settings


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
def train(settings: Any, dry_run: bool, quiet: Quiet = False) -> None:
    """Train a Mask R-CNN; run the same command again to resume."""
    from jobs.progress import ProgressLine
    from jobs.training.train import prepare_train, run_train

    plan = check_or_refuse(lambda: prepare_train(settings))
    if dry_run:
        for note in plan.notes:
            say(f"note: {note}")
        say(plan.describe())
        return
    line = ProgressLine("train", quiet=quiet)
    result = run_or_fail(lambda: run_train(plan, on_progress=line.take), line)
    say(result.describe())


@configured("sweep")
def sweep(settings: Any, dry_run: bool, quiet: Quiet = False) -> None:
    """Train every point of a grid and make one table of it; run the same command again to go on."""
    from jobs.progress import ProgressLine
    from jobs.sweep.run import prepare_sweep, run_sweep

    plan = check_or_refuse(lambda: prepare_sweep(settings))
    if dry_run:
        say(plan.describe())
        for trial in plan.trials:
            say(f"  {trial.name}{'  (trained)' if trial.name in plan.finished else ''}")
        return
    line = ProgressLine("sweep", quiet=quiet)
    line.note(plan.describe())
    result = run_or_fail(lambda: run_sweep(plan, on_progress=line.show), line)
    say(result.describe())
    if result.num_failed:
        raise typer.Exit(Exit.FAILED)


@configured("segment")
def segment(
    settings: Any,
    dry_run: bool,
    quiet: Quiet = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")] = False,
) -> None:
    """Segment a folder of images into Parquet; run the same command again to resume."""
    from jobs.profile import describe_profile
    from jobs.progress import ProgressLine
    from jobs.segment import prepare_segment, run_segment
    from pipeline.bulk.progress import Progress

    plan = check_or_refuse(lambda: prepare_segment(settings))
    for note in plan.notes:
        say(f"note: {note}")
    if dry_run:
        say(f"would segment {plan.spec.input.uri} with {plan.checkpoint} into {settings.output.uri}")
        say(f"run {plan.run_id}")
        return
    line, states = ProgressLine("segment", quiet=quiet), list[Progress]()

    def show(progress: Progress) -> None:
        states[:] = [progress]
        line.show_run(progress)

    totals = run_or_fail(lambda: run_segment(plan, show), line)
    say(f"{totals.num_images:,} images, {totals.num_instances:,} instances -> {settings.output.uri}")
    say("status: " + ", ".join(f"{status} {count:,}" for status, count in sorted(totals.statuses.items())))
    if profile:
        say(describe_profile(states[-1], settings))
    if totals.failed_fraction > settings.segment.max_failed_fraction:
        say(
            f"{totals.failed_fraction:.1%} of the images failed; segment.max_failed_fraction allows "
            f"{settings.segment.max_failed_fraction:.1%}"
        )
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command("settings")
def show_settings(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Such as train or segment.")],
    section: Annotated[str, typer.Argument(metavar="[SECTION]", help="Such as train or model.spec; else all.")] = "",
) -> None:
    """Print the settings of a command: key, default, type, range and meaning; docs/settings.md has all."""
    from jobs.config.describe import command_names, settings_of, to_text

    if command not in command_names():
        fail(
            f"settings: no command {command!r} takes settings; allowed are {', '.join(command_names())}", Exit.BAD_INPUT
        )
    settings = settings_of(command, section)
    if not settings:
        sections = dict.fromkeys(each.section for each in settings_of(command))
        fail(f"settings: {command} has no section {section!r}; it has {', '.join(sections)}", Exit.BAD_INPUT)
    say(to_text(settings))


@configured("predict")
def predict(settings: Any, dry_run: bool, quiet: Quiet = False) -> None:
    """Look at a few photos, without a cluster: `maskfleet predict PHOTO... model.checkpoint=coco`; see output.uri."""
    from jobs.predict import prepare_predict, run_predict, to_rich_table
    from jobs.progress import ProgressLine

    plan = check_or_refuse(lambda: prepare_predict(settings))
    if dry_run:
        say(f"would predict {counted(len(plan.photos), 'photo')} with {settings.model.checkpoint}")
        return
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


@app.command()
def retry(words: Words = None, dry_run: DryRun = False, quiet: Quiet = False) -> None:
    """Try again what failed in a finished run: `maskfleet retry RUN_URI`; nothing sealed is touched."""
    from jobs.config.load import is_override

    if not words or is_override(words[0]):
        fail("retry: name the run first, as in: maskfleet retry RUN_URI", Exit.BAD_INPUT)
    uri, *overrides = words
    # The run's own settings are read from the run, which may lie where only these words lead.
    _settings("verify", None, [uri, *(word for word in overrides if word.startswith("storage."))])
    from jobs.progress import ProgressLine
    from jobs.segment import prepare_retry, run_retry

    plan = check_or_refuse(lambda: prepare_retry(uri, overrides))
    if dry_run:
        say(f"would try again what failed in run {plan.run_id} with {plan.checkpoint}")
        return
    line = ProgressLine("retry", quiet=quiet)
    statuses = run_or_fail(lambda: run_retry(plan, line.show_run), line)
    if not statuses:
        say("no image ended with a status that is tried again")
    else:
        say("repaired shards: " + ", ".join(f"{status} {count:,}" for status, count in sorted(statuses.items())))


@configured("evaluate")
def evaluate(settings: Any, dry_run: bool) -> None:
    """Measure a run against ground truth: `maskfleet evaluate RUN_URI ground_truth.uri=instances.json`."""
    from jobs.evaluate import prepare_evaluate, run_evaluate, to_rich_tables

    plan = check_or_refuse(lambda: prepare_evaluate(settings))
    if dry_run:
        say(f"would evaluate {settings.run.uri} against {settings.ground_truth.uri} into {plan.output.uri}")
        return
    metrics, reasons = run_or_fail(lambda: run_evaluate(plan))
    for table in to_rich_tables(metrics):
        print_table(table)
    for note in metrics.notes:
        say(f"note: {note}")
    say(f"figures -> {plan.output.uri}")
    end_at_gate(reasons)


@configured("compare")
def compare(
    settings: Any,
    dry_run: bool,
    ground_truth: Annotated[str | None, typer.Option("--ground-truth", help="Short for ground_truth.uri=.")] = None,
) -> None:
    """Compare two runs: `maskfleet compare RUN_A RUN_B --ground-truth instances.json`; without labels, their drift."""
    from jobs.compare import describe, prepare_compare, run_compare

    plan = check_or_refuse(lambda: prepare_compare(settings))
    if dry_run:
        say(f"would compare {settings.run_a.uri} with {settings.run_b.uri}")
        return
    result, reasons = run_or_fail(lambda: run_compare(plan))
    say(describe(result))
    end_at_gate(reasons)


@configured("history")
def history(settings: Any, dry_run: bool) -> None:
    """Print the trend of kept evaluations: `maskfleet history HISTORY_URI`; output.uri=FOLDER also plots it."""
    from jobs.report import read_history, to_rich_history

    if dry_run:
        say(f"would read the evaluations kept in {settings.history.uri}")
        return
    table, plot = run_or_fail(lambda: read_history(settings))
    if len(table):
        print_table(to_rich_history(table))
    else:
        say(f"no evaluation is kept in {settings.history.uri}")
    if plot is not None:
        say(f"plot -> {plot}")


@configured("report")
def report(settings: Any, dry_run: bool) -> None:
    """Write one HTML file with pictures of a run or a training: `maskfleet report RUN_URI`."""
    from jobs.report import check_source, write_report

    check_or_refuse(lambda: check_source(settings))
    if dry_run:
        say(f"would write a report of {settings.run.uri}")
        return
    say(f"report -> {run_or_fail(lambda: write_report(settings))}")


@configured("export")
def export(
    settings: Any, dry_run: bool, to: Annotated[str | None, typer.Option("--to", help="Short for export.to=.")] = None
) -> None:
    """Write a run in another tool's form: `maskfleet export RUN_URI --to coco|coco-results|yolo|labelme|png`."""
    from jobs.report import check_source, write_export

    check_or_refuse(lambda: check_source(settings))
    if dry_run:
        say(f"would export {settings.run.uri} to {settings.export.to}")
        return
    target, exported = run_or_fail(lambda: write_export(settings))
    for note, count in exported.notes.items():
        say(f"note: {note}: {count:,}")
    say(f"{exported.num_files:,} files -> {target}")


@configured("check-data")
def check_data(settings: Any, dry_run: bool) -> None:
    """Say what in annotated photos would break training: `maskfleet check-data ANNOTATIONS`; 2 if something would."""
    from jobs.annotations import describe_report, run_check_data

    if dry_run:
        say(f"would read every annotation and photo of {settings.data.uri}")
        return
    result = check_or_refuse(lambda: run_check_data(settings))
    say(describe_report(result))
    if not result.ok:
        raise typer.Exit(Exit.BAD_INPUT)


@configured("convert")
def convert(
    settings: Any, dry_run: bool, to: Annotated[str | None, typer.Option("--to", help="Short for convert.to=.")] = None
) -> None:
    """Write annotations in another format: `maskfleet convert ANNOTATIONS TARGET --to coco|via|voc|cityscapes|...`."""
    from jobs.annotations import describe_conversion, run_convert

    if dry_run:
        say(f"would convert {settings.data.uri} to {settings.convert.to} at {settings.output.uri}")
        return
    say(describe_conversion(check_or_refuse(lambda: run_convert(settings)), settings.output.uri))


@configured("verify")
def verify(settings: Any, dry_run: bool) -> None:
    """Re-read a run and prove it, or name every fault: `maskfleet verify RUN_URI`."""
    from pipeline.bulk.verify import verify_run
    from pipeline.manifest import open_run

    run = check_or_refuse(lambda: open_run(settings.run.uri, settings.storage))
    if dry_run:
        say(f"would verify run {run.run_id} at {settings.run.uri}")
        return
    faults = run_or_fail(lambda: list(verify_run(run)))
    for fault in faults:
        say(f"{fault.key}: {fault.reason}")
    if faults:
        say(f"run {run.run_id}: {counted(len(faults), 'fault')}")
        raise typer.Exit(Exit.FAILED)
    totals = run.final
    assert totals is not None  # a run without totals has a fault
    say(f"run {run.run_id} is exact: {totals.num_images:,} images, {totals.num_instances:,} instances")


@configured("demo")
def demo(settings: Any, dry_run: bool) -> None:
    """Draw shapes, train on them, segment, evaluate and look: all of it, small, on this machine."""
    from jobs.demo import run_demo

    if dry_run:
        say(f"would run the demo in {settings.output.uri}")
        return
    run_or_fail(lambda: run_demo(settings, say=say, print_table=print_table))


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

    environment = check_or_refuse(lambda: handed_environment(env or [], credentials=credentials))
    line = _line_of(command, context.args)
    words, file = line.pop("words") or [], line.pop("config", None)
    for option in ("dry_run", "print_config"):
        if line.pop(option, False):
            fail(f"submit: --{option.replace('_', '-')} is for the command itself; run it here", Exit.BAD_INPUT)
    if command == "retry":
        if not words or is_override(words[0]):
            fail("retry: name the run first, as in: maskfleet submit retry RUN_URI", Exit.BAD_INPUT)
        submission = from_words(command, words, environment)
    else:
        # Options that stand for no setting are the command's own switches; those that are set go along.
        own = COMMANDS[command].options
        switches = [f"--{name.replace('_', '-')}" for name, value in line.items() if name not in own and value]
        shorthands = {name: value for name, value in line.items() if name in own}
        settings = check_or_refuse(lambda: read_settings(command, file, words, **shorthands))
        submission = from_settings(command, settings, environment, switches)
    jobs = check_or_refuse(lambda: Jobs(address))
    if warning := jobs.warning():
        sys.stderr.write(f"maskfleet: warning: {warning}\n")
    for setting in submission.local_paths():
        say(f"note: {setting} is a path: every node must see it there")
    if submission.environment:
        say(f"handed over, unseen: {', '.join(sorted(submission.environment))}")
    state, is_new = run_or_fail(lambda: jobs.submit(submission, dependencies=dependencies, driver_cpus=driver_cpus))
    done = "is submitted" if is_new else "has succeeded already" if state.status == SUCCEEDED else "is running already"
    say(f"job {state.job_id} {done}")
    if not wait:
        say(f"see: maskfleet jobs logs {state.job_id} --follow --address {jobs.address}")
    elif state.status != SUCCEEDED:
        _follow(jobs, state.job_id)


@configured("schedule")
def schedule(
    settings: Any,
    dry_run: bool,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
) -> None:
    """Evaluate and segment at times: `maskfleet schedule --config configs/schedule/nightly.yaml`.

    Any number of schedulers may share one state. With --once: 1 when a tick failed, 4 when a gate did.
    """
    from jobs.schedule.scheduler import Scheduler, describe_schedule, run_forever, run_once
    from jobs.schedule.tasks import Programs, credentials_of

    if dry_run:
        say(describe_schedule(settings))
        return
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
    if dry_run:
        say(f"would write manifests into {settings.output.uri}")
        return
    names = check_or_refuse(lambda: write_manifests(settings, find_config(config, "manifests")))
    say(f"{', '.join(names)} -> {settings.output.uri}")


@jobs_app.command("list")
def list_jobs(address: Address = None) -> None:
    """One line for each job of a cluster, oldest first."""
    from jobs.cluster.submit import Jobs

    jobs = check_or_refuse(lambda: Jobs(address))
    states = run_or_fail(jobs.list)
    for state in states:
        say(state.describe())
    if not states:
        say(f"no job was submitted to {jobs.address}")


@jobs_app.command("status")
def job_status(job_id: JobId, address: Address = None) -> None:
    """What became of a job; ends with 0 whatever that is."""
    from jobs.cluster.submit import SUCCEEDED, Jobs, reason_of

    jobs = check_or_refuse(lambda: Jobs(address))
    state = run_or_fail(lambda: jobs.state(job_id))
    say(state.describe())
    if state.is_over and state.status != SUCCEEDED:
        say(f"reason: {reason_of(state, run_or_fail(lambda: jobs.log(job_id)))}")


@jobs_app.command("logs")
def job_logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as the log grows, and end as the job does.")] = False,
) -> None:
    """What a job has written."""
    from jobs.cluster.submit import Jobs

    jobs = check_or_refuse(lambda: Jobs(address))
    if follow:
        _follow(jobs, job_id)
    else:
        sys.stdout.write(run_or_fail(lambda: jobs.log(job_id)))


@jobs_app.command("stop")
def stop_job(job_id: JobId, address: Address = None) -> None:
    """Stop a job and wait until it has ended; submitting it again goes on where it was."""
    from jobs.cluster.submit import Jobs

    jobs = check_or_refuse(lambda: Jobs(address))
    say(run_or_fail(lambda: jobs.stop(job_id)).describe())


def main() -> None:
    """The entry point of `maskfleet` and `python -m maskfleet`."""
    interrupts = Interrupts(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    interrupts.listen()
    # Ray, which reads it as it is imported, would start another one for a thread that outlives its shutdown.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        app()
    except BaseException as error:  # typer and others turn an interrupt into errors of their own
        if interrupts.first is not None and getattr(error, "code", Exit.INTERRUPTED) != Exit.DONE:
            interrupts.end()
        raise


def _line_of(command: str, words: list[str]) -> dict[str, Any]:
    """The rest of a submission's line as the command itself would read it; ends with 2 where it would not."""
    from jobs.cluster.job_package import SUBMITTED

    if command not in SUBMITTED:
        fail(f"submit: {command!r} is not allowed; allowed are {', '.join(SUBMITTED)}", Exit.BAD_INPUT)
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
        state = run_or_fail(lambda: jobs.follow(job_id, write))
    except Interrupted as interrupt:
        interrupt.go_on = f"job {job_id} goes on; see: maskfleet jobs status {job_id} --address {jobs.address}"
        raise
    if ended and not ended.endswith("\n"):
        say("")
    if state.status == SUCCEEDED:
        say(f"job {job_id} succeeded")
        return
    code = state.exit_code if state.exit_code and state.exit_code > 0 else Exit.FAILED
    sys.stderr.write(f"maskfleet: job {job_id} {state.status.lower()}, exit code {code}: {reason_of(state, ended)}\n")
    raise typer.Exit(code)
