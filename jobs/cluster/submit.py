"""`maskfleet submit` and `maskfleet jobs`: runs commands as jobs of a Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import shlex
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from jobs.cluster.job_package import Submission, code_hash, pinned_dependencies, write_package
from jobs.cluster.submission import PYTHON
from jobs.config.load import ConfigError
from jobs.interrupt import CHECKPOINT_S, END_S
from pipeline.storage.uri import scheme_of

Answer = TypeVar("Answer")

ADDRESS = "http://127.0.0.1:8265"
TOKEN_FILE = Path(".ray/auth_token")
RUNNING = ("PENDING", "RUNNING")
SUCCEEDED = "SUCCEEDED"
POLL_S = 0.5
STOP_S = CHECKPOINT_S + END_S + 10  # Ray kills a stopped job after so long; by itself after 3 s, without a checkpoint
SETUP_HOOK = "jobs.cluster.submission.setup_worker"
# Ray calls the hook of a runtime environment in workers only; with this variable, which it sets for them, also in the
# process that starts the command. Ray has no public name for it; a test compares it with Ray's own.
HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
LOST_TRIES = 20  # failed connections in a row: a busy head answers in the end, one that is gone does not


class JobError(ValueError):
    """The cluster refuses a job, does not know it, or does not answer; the message says which."""


@dataclass(frozen=True)
class JobState:
    """State of a job, from the cluster.

    Attributes:
        job_id: its submission id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: of its command; None while it runs, or where it never started.
        message: Ray's message about the status.
        started, ended: when, in UTC; None where it has not yet.
        about: the job's metadata: command, output (URI) and code (first digits of its hash).
    """

    job_id: str
    status: str
    exit_code: int | None
    message: str
    started: datetime | None
    ended: datetime | None
    about: dict[str, str]

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in success or not."""
        return self.status not in RUNNING

    def describe(self) -> str:
        """The state in one line: id, status, start, duration, output."""
        until = self.ended or datetime.now(UTC)
        took = "" if self.started is None else f"{(until - self.started).total_seconds():.0f} s"
        when = "" if self.started is None else f"{self.started:%Y-%m-%d %H:%M:%S}Z"
        code = "" if self.exit_code is None or self.status == SUCCEEDED else f" (exit code {self.exit_code})"
        return f"{self.job_id}  {self.status}{code}  {when}  {took}  {self.about.get('output', '')}".rstrip()


class Jobs:
    """Client of one cluster's Jobs API: submits, lists, follows and stops jobs."""

    def __init__(self, address: str | None = None) -> None:
        """Connects.

        Args:
            address: of the cluster's dashboard, such as http://head:8265; None is $RAY_API_SERVER_ADDRESS, else this
                machine's.

        Raises:
            ConfigError: nothing answers at the address, or the cluster asks for a token that is missing or wrong.
        """
        self.address = _url(address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS)
        self.has_token = False
        headers: dict[str, str] = {}
        # The token is sent only to a cluster that asks for one.
        if _answer(self.address, headers) in (401, 403):
            self.has_token = True
            headers = {"Authorization": f"Bearer {find_token(self.address)}"}
            if _answer(self.address, headers) in (401, 403):
                raise ConfigError(f"--address {self.address}: the cluster refuses the token; give its own one")
        from ray.job_submission import JobSubmissionClient

        modules = ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging")
        for name in (f"ray.{module}" for module in modules):  # they log each step at INFO
            logging.getLogger(name).setLevel(logging.WARNING)

        with _without_addresses():
            try:
                self._client = JobSubmissionClient(self.address, headers=headers)
            except Exception as error:
                raise ConfigError(f"--address {self.address}: {error}") from None

    def warning(self) -> str | None:
        """A warning that anybody can run jobs there; None where a token is needed or only this machine reaches it."""
        host, port = _host_and_port(self.address)
        if self.has_token:
            return None
        if not _is_loopback(host):
            listener = self.address
        elif _is_reached_from_outside(port):
            listener = f"{self.address}, which listens beyond this machine,"
        else:
            return None
        return (
            f"{listener} takes jobs without a token: whoever reaches it can run any program there; start the cluster "
            "with RAY_AUTH_MODE=token"
        )

    def submit(
        self,
        submission: Submission,
        *,
        dependencies: Literal["cluster", "pinned"] = "cluster",
        driver_cpus: float = 0,
    ) -> tuple[JobState, bool]:
        """Submits a job, unless the same submission is running or has succeeded.

        The job's id is `COMMAND-HASH-ATTEMPT`. Where several callers submit the same at once, one of them starts it and
        the others get that job.

        Args:
            submission: what to run.
            dependencies: "pinned" installs this machine's versions of the program's dependencies on each node;
                "cluster" uses those that the nodes have.
            driver_cpus: CPU cores reserved for the command itself; 0 runs it on the head node.

        Returns:
            The job, and whether this call started it.

        Raises:
            JobError: the cluster refuses the job.
        """
        name = f"{submission.command}-{submission.hash()}"
        while True:
            attempts = self._attempts(name)
            last = max(attempts, default=0)
            if last and (not attempts[last].is_over or attempts[last].status == SUCCEEDED):
                return attempts[last], False
            job_id = f"{name}-{last + 1}"
            try:
                self._start(job_id, submission, dependencies, driver_cpus)
            except RuntimeError as error:
                if "already exists" in str(error):
                    continue
                raise JobError(f"{self.address} does not take the job: {error}") from None
            return self.state(job_id), True

    def _start(self, job_id: str, submission: Submission, dependencies: str, driver_cpus: float) -> None:
        with tempfile.TemporaryDirectory(prefix="maskfleet-submit-") as scratch:
            write_package(Path(scratch), submission)
            runtime_env: dict[str, object] = {
                "working_dir": scratch,
                "worker_process_setup_hook": SETUP_HOOK,
                # Nothing secret: Ray logs and shows these.
                "env_vars": {
                    HOOK_VARIABLE: SETUP_HOOK,
                    "RAY_TRAIN_V2_ENABLED": "1",
                    "RAY_worker_niceness": "0",
                    "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_S:.0f}",
                },
            }
            if dependencies == "pinned":
                runtime_env["pip"] = {"packages": pinned_dependencies(), "pip_check": False}
            self._client.submit_job(
                # Ray passes this to a shell, so it has none of the user's words.
                entrypoint=f'"${{{PYTHON}:-python3}}" -m jobs.cluster.entrypoint {shlex.quote(submission.command)}',
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata={"command": submission.command, "output": submission.output, "code": code_hash()[:12]},
                entrypoint_num_cpus=driver_cpus or None,
            )

    def _attempts(self, name: str) -> dict[int, JobState]:
        pattern = re.compile(re.escape(name) + r"-(\d+)")
        matches = [(pattern.fullmatch(state.job_id), state) for state in self.list()]
        return {int(match.group(1)): state for match, state in matches if match}

    def list(self) -> list[JobState]:
        """The state of every job that was submitted to the cluster, oldest first."""
        states = [_state(job) for job in self._ask(self._client.list_jobs) if job.submission_id]
        return sorted(states, key=lambda state: state.started or datetime.max.replace(tzinfo=UTC))

    def state(self, job_id: str) -> JobState:
        """The state of one job. Raises JobError where there is none of this id."""
        return _state(self._ask(lambda: self._client.get_job_info(job_id), job_id))

    def log(self, job_id: str) -> str:
        """All that a job has written so far. Raises JobError where there is none of this id."""
        return self._ask(lambda: self._client.get_job_logs(job_id), job_id)

    def stop(self, job_id: str, timeout_s: float = STOP_S + 30) -> JobState:
        """Stops a job and waits until it has ended; one that has ended before is left as it is.

        Raises:
            JobError: no such job, or it has not ended after `timeout_s`.
        """
        self._ask(lambda: self._client.stop_job(job_id), job_id)
        give_up = time.monotonic() + timeout_s
        while not (state := self.state(job_id)).is_over:
            if time.monotonic() > give_up:
                raise JobError(f"job {job_id} was told to stop and has not ended within {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return state

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobState:
        """Writes a job's log from its beginning and as it grows; returns the job's state when it has ended.

        A connection that breaks is made again, and nothing is written twice.

        Raises:
            JobError: no such job, or more than LOST_TRIES connections in a row have failed.
        """
        from aiohttp import ClientError

        num_written = num_failures = 0

        def write_new(text: str) -> None:
            nonlocal num_written, num_failures
            write(text)
            num_written += len(text)
            num_failures = 0

        while True:
            try:
                asyncio.run(self._tail(job_id, write_new, num_written))
                state = self.state(job_id)
                num_failures = 0
            except (JobError, OSError, RuntimeError, ClientError) as error:
                num_failures += 1
                if num_failures > LOST_TRIES or "does not exist" in str(error):
                    raise JobError(f"job {job_id}: {error}") from None
                time.sleep(POLL_S)
                continue
            if state.is_over:
                return state
            time.sleep(POLL_S)

    async def _tail(self, job_id: str, write: Callable[[str], None], num_written: int) -> None:
        """Writes a job's log from its character `num_written` on, until the connection ends."""
        num_received = 0
        async for text in self._client.tail_job_logs(job_id):
            new = text[max(0, num_written - num_received) :]
            num_received += len(text)
            if new:
                write(new)

    def _ask(self, request: Callable[[], Answer], job_id: str = "") -> Answer:
        """The answer to a request of Ray's client; its errors become JobErrors."""
        try:
            return request()
        except OSError as error:
            raise JobError(f"{self.address} does not answer: {type(error).__name__}") from None
        except RuntimeError as error:
            if job_id and ("does not exist" in str(error) or "404" in str(error)):
                raise JobError(f"{self.address}: job {job_id} does not exist") from None
            raise JobError(f"{self.address}: {error}") from None


def reason_of(state: JobState, log: str) -> str:
    """Why a job did not succeed, in one line: the program's last message, else Ray's."""
    if state.status == "STOPPED":
        return "it was stopped; submit it again to go on"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    messages = [line.removeprefix("maskfleet: ") for line in lines if line.startswith("maskfleet: ")]
    if messages:
        return messages[-1]
    return " ".join(state.message.split())[:500] or "no reason is known"


def find_token(address: str) -> str:
    """The cluster's token, from where Ray looks: $RAY_AUTH_TOKEN, the file $RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        ConfigError: none of them is set or can be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / TOKEN_FILE)
    try:
        return path.read_text().strip()
    except OSError:
        raise ConfigError(
            f"--address {address}: the cluster asks for a token; set RAY_AUTH_TOKEN, or write it to {path}"
        ) from None


def _state(job: Any) -> JobState:
    return JobState(
        job_id=job.submission_id,
        status=str(getattr(job.status, "value", job.status)),
        exit_code=job.driver_exit_code,
        message=job.message or "",
        started=_time(job.start_time),
        ended=_time(job.end_time),
        about=dict(job.metadata or {}),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _url(address: str) -> str:
    url = address if scheme_of(address) else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ConfigError(f"--address {address!r} is not allowed; allowed is the dashboard's, such as http://head:8265")
    return url.rstrip("/")


def _answer(address: str, headers: dict[str, str]) -> int:
    """The HTTP status of a request that needs the token, where the cluster has one."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        raise ConfigError(
            f"--address {address}: nobody answers there ({error}); allowed is the address of a running cluster's "
            "dashboard, such as http://head:8265"
        ) from None


@contextlib.contextmanager
def _without_addresses() -> Iterator[None]:
    """Unsets the variables that Ray prefers to the address that it is called with."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _is_reached_from_outside(port: int) -> bool:
    """Whether a port of this machine also answers at its address in the network, not only at loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: finds the address that packets would be sent from
            own_address = probe.getsockname()[0]
        except OSError:  # no route to other machines
            return False
    try:
        socket.create_connection((own_address, port), timeout=1).close()
    except OSError:
        return False
    return True
