"""`maskfleet submit` and `maskfleet jobs`: a command as a job of a cluster, and the jobs that are there."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from jobs.commands import read_settings, split_retry
from jobs.config.completion import complete_submitted
from jobs.interrupt import Interrupted
from jobs.terminal import Exit, check_or_refuse, fail, refuse_name, run_or_fail, say

Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Address of the cluster's dashboard, such as http://head:8265; else $RAY_API_SERVER_ADDRESS."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `maskfleet jobs list` names it.")]

jobs_app = typer.Typer(no_args_is_help=True, help="The jobs of a cluster: list, status, logs, stop.")


def submit(
    context: typer.Context,
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND", help="train, segment, evaluate, retry, ...", autocompletion=complete_submitted
        ),
    ],
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
    from jobs.cluster.job_package import SUBMITTED, from_settings, from_words, handed_environment
    from jobs.cluster.submit import SUCCEEDED, Jobs

    if command not in SUBMITTED:
        refuse_name("submit: no command", command, SUBMITTED)
    environment = check_or_refuse(lambda: handed_environment(env or [], credentials=credentials))
    # The rest of the line, as the command itself would read it.
    group: Any = context.find_root().command
    line = dict(group.commands[command].make_context(f"maskfleet submit {command}", list(context.args)).params)
    words, file = line.pop("words"), line.pop("config", None)
    for option in ("dry_run", "print_config"):
        if line.pop(option, False):
            fail(f"submit: --{option.replace('_', '-')} is for the command itself; run it here", Exit.BAD_INPUT)
    if command == "retry":
        uri, overrides = check_or_refuse(lambda: split_retry(words))
        submission = from_words(command, [uri, *overrides], environment)
    else:
        switches = [f"--{name.replace('_', '-')}" for name, is_set in line.items() if is_set]
        settings = check_or_refuse(lambda: read_settings(command, file, words))
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
