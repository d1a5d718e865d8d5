"""Steps of a scheduled tick: finds evaluations and runs that are due, runs them as `maskfleet` commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import yaml

from jobs.checkpoints import find_checkpoint
from jobs.cluster.job_package import CREDENTIALS
from jobs.config.load import to_plain
from jobs.config.schedule import (
    DataSetSection,
    EvaluationSection,
    ScheduleConfig,
    SegmentationSection,
    TaskSection,
    segment_settings,
    tick_fields,
)
from jobs.config.segment import SegmentConfig
from jobs.evaluate import truth_hash
from jobs.home import HOME
from jobs.schedule.state import ScheduleState
from model.checkpoint_folder import CHECKPOINT_MARKER
from pipeline.bulk.corpus import list_corpus
from pipeline.bulk.listing import UnsortedListing, tell_kind
from pipeline.dataset.source import AnnotationSource
from pipeline.manifest import RUN_KEY, to_json
from pipeline.results.history import load_history
from pipeline.run_spec import InputSpec
from pipeline.storage.base import StorageSettings
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import absolute_uri, base_name, parent_uri

GATE = 4  # exit code of `maskfleet evaluate` where a gate failed
STOP_S = 12  # between SIGTERM and SIGKILL; a command ends in less, see jobs.interrupt


class TickFailed(RuntimeError):
    """A step of a tick failed; `steps` has a line for each step that was finished before it."""

    def __init__(self, reason: str, steps: list[str]) -> None:
        super().__init__(reason)
        self.steps = steps


class Stopped(RuntimeError):
    """The scheduler is being stopped, and so are the commands that it runs."""


@dataclass
class Result:
    """The result of a tick: a line for each finished step, and one for each gate that failed."""

    steps: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)


class Runner(Protocol):
    """Runs command lines of this program."""

    def run(self, args: list[str], timeout_s: float) -> tuple[int, str]:
        """Runs `maskfleet ARGS`; returns its exit code and its last line. Raises TimeoutError, Stopped."""

    def wait(self, seconds: float) -> None:
        """Waits. Raises Stopped where `stop` is called meanwhile."""

    def stop(self) -> None:
        """Ends the running commands and refuses new ones; may be called from any thread."""


class Programs:
    """Runner that runs each command as a process on this machine.

    Args:
        environment: variables of the process, over those of this process.
        say: writes one line; called with each line that the process writes.
    """

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.environment = dict(environment)
        self.say = say
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def run(self, args: list[str], timeout_s: float) -> tuple[int, str]:
        """As `Runner.run`; a process that takes too long or is stopped gets SIGTERM, and SIGKILL after STOP_S."""
        if self._stopped.is_set():
            raise Stopped
        program = subprocess.Popen(
            [sys.executable, "-P", str(HOME / "maskfleet" / "__main__.py"), *args],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running.add(program)
        if self._stopped.is_set():  # `stop` may have looked at the running programs before this one was among them
            _end(program)
        has_timed_out = threading.Event()
        timer = threading.Timer(timeout_s, _end, [program, has_timed_out])
        timer.start()
        last_line = ""
        try:
            assert program.stdout is not None
            for line in program.stdout:
                self.say(f"  {args[0]}: {line.rstrip().removeprefix(f'{args[0]}: ')}")
                last_line = line.strip() or last_line
            code = program.wait()
        finally:
            timer.cancel()
            self._running.discard(program)
        if self._stopped.is_set():
            raise Stopped
        if has_timed_out.is_set() and code != 0:
            raise TimeoutError(f"{args[0]} took longer than {timeout_s:.0f} s")
        return code, last_line.removeprefix("maskfleet: ")

    def wait(self, seconds: float) -> None:
        """As `Runner.wait`."""
        if self._stopped.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """As `Runner.stop`."""
        self._stopped.set()
        for program in list(self._running):
            _end(program)


def _end(program: subprocess.Popen[str], has_timed_out: threading.Event | None = None) -> None:
    """Ends a process: SIGTERM, on which it ends its own, and SIGKILL for all after STOP_S; `has_timed_out` is set."""
    if has_timed_out is not None:
        has_timed_out.set()
    program.terminate()
    try:
        program.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)


def credentials_of(config: ScheduleConfig) -> dict[str, str]:
    """The storage section's credentials as AWS_* environment variables, so that none is written into a file."""
    secrets = {variable: getattr(config.storage, name) for name, variable in CREDENTIALS.items()}
    return {variable: secret.reveal() for variable, secret in secrets.items() if secret is not None}


def run_tick(config: ScheduleConfig, task: TaskSection, tick: datetime, state: ScheduleState, runner: Runner) -> Result:
    """Runs what is due at a tick. Evaluations in the history are not repeated, and unfinished runs are resumed.

    Raises:
        TickFailed: a step failed or took too long.
        ValueError, OSError: a checkpoint, ground truth or history cannot be read.
    """
    deadline = time.monotonic() + task.timeout_s
    if task.evaluate is not None:
        return _evaluate(config, task, task.evaluate, tick, runner, deadline)
    assert task.segment is not None
    return _segment(config, task, task.segment, tick, state, runner, deadline)


def due_evaluations(
    section: EvaluationSection, settings: StorageSettings | None = None
) -> Iterator[tuple[str, DataSetSection]]:
    """Each (URI of the checkpoint folder, data set) whose figures are not in the history.

    A checkpoint is identified by the hash of its weights, a data set by the hash of its ground truth: a copy under
    another URI is not due again.
    """
    history = load_history(open_storage(section.history, settings))
    evaluated = set(zip(history["model_sha256"], history["truth_sha256"]))
    for uri in section.models:
        checkpoint = find_checkpoint(uri, settings=settings)
        model = weights_hash(checkpoint, settings)
        for data in section.data:
            identity = (model, truth_hash(AnnotationSource(uri=data.ground_truth, format=data.format), settings))
            if identity not in evaluated:
                evaluated.add(identity)
                yield checkpoint, data


def weights_hash(checkpoint: str, settings: StorageSettings | None = None) -> str:
    """The SHA-256 of a checkpoint's weights, from its marker file. Raises OSError where that cannot be read."""
    marker = json.loads(open_storage(checkpoint, settings).read_bytes(CHECKPOINT_MARKER))
    return marker["files"]["model.safetensors"]["sha256"]


def model_name(checkpoint: str, settings: StorageSettings | None = None) -> str:
    """The value of {model} in templates: training and step, or the folder's name, and 8 digits of the weights' hash."""
    folder, name = parent_uri(checkpoint), base_name(checkpoint)
    if base_name(folder) == "checkpoints":
        name = f"{base_name(parent_uri(folder))}-{name}"
    return f"{name}-{weights_hash(checkpoint, settings)[:8]}"


def fill_template(template: str, config: ScheduleConfig, task: TaskSection, tick: datetime, **names: str) -> str:
    """The URI of a template; {date} and {time} are when the tick was due, as `tick_fields` has them.

    Args:
        names: values of {model} and {data}; {data} is 'all' where it is not given.
    """
    return template.format(**tick_fields(tick, config.zone_of(task)), task=task.name, **{"data": "all", **names})


def _evaluate(
    config: ScheduleConfig,
    task: TaskSection,
    section: EvaluationSection,
    tick: datetime,
    runner: Runner,
    deadline: float,
) -> Result:
    result = Result()
    for checkpoint, data in list(due_evaluations(section, config.storage)):
        model = model_name(checkpoint, config.storage)
        run = fill_template(section.run_uri, config, task, tick, model=model, data=data.name)
        settings = segment_settings(section.segment, checkpoint, data.images, run)
        settings["cluster"] = {**to_plain(config.cluster), **settings.get("cluster", {})}
        _step(config, "segment", settings, runner, deadline, result)
        evaluate: dict[str, Any] = dict(section.evaluate)
        evaluate["run"] = {"uri": run}
        evaluate["cluster"] = {**to_plain(config.cluster), **evaluate.get("cluster", {})}
        evaluate["ground_truth"] = {"uri": data.ground_truth, "format": data.format}
        evaluate["history"] = {"label": f"{model} {data.name}", **evaluate.get("history", {}), "uri": section.history}
        code, last_line = _step(config, "evaluate", evaluate, runner, deadline, result, allowed=(0, GATE))
        if code == GATE:
            result.gates.append(f"{model} on {data.name}: {last_line.removeprefix('gate failed: ')}")
        result.steps.append(f"evaluated {model} on {data.name}: {run}")
    return result


def _segment(
    config: ScheduleConfig,
    task: TaskSection,
    section: SegmentationSection,
    tick: datetime,
    state: ScheduleState,
    runner: Runner,
    deadline: float,
) -> Result:
    result = Result()
    checkpoint = find_checkpoint(section.checkpoint, settings=config.storage)
    run = fill_template(section.output_uri, config, task, tick, model=model_name(checkpoint, config.storage))
    settings = segment_settings(section.segment, checkpoint, section.images, run)
    settings["cluster"] = {**to_plain(config.cluster), **settings.get("cluster", {})}
    earlier = last_run(state, task.name)
    if section.new_only and earlier is not None and earlier != run:
        settings["input"]["since_run"] = earlier
    if (
        section.new_only
        and not open_storage(run, config.storage).exists(RUN_KEY)
        and not _has_new_images(settings, config.storage)
    ):
        result.steps.append(f"nothing new in {section.images}")
        return result
    _step(config, "segment", settings, runner, deadline, result)
    state.storage.write_bytes(f"{task.name}/last_run.json", to_json({"run": run}))
    result.steps.append(f"segmented {section.images}: {run}")
    return result


def _has_new_images(settings: dict[str, Any], storage: StorageSettings) -> bool:
    """Whether a segmentation with these settings would find an image; always so where an input may be empty.

    Raises:
        ValueError, OSError: the images or an earlier run cannot be listed.
    """
    section = SegmentConfig.model_validate(settings).input
    uri = absolute_uri(section.uri)
    source = InputSpec(
        uri=uri,
        kind=section.kind or tell_kind(uri),
        pattern=section.pattern,
        uri_column=section.uri_column,
        since_run=section.since_run,
    )
    if section.allow_empty:
        return True
    try:
        return next(list_corpus(source, "", settings=storage), None) is not None
    except UnsortedListing:
        return next(list_corpus(source, "", sort=True, settings=storage), None) is not None


def last_run(state: ScheduleState, task: str) -> str | None:
    """The URI of the newest finished run of a segmentation task; None before the first."""
    try:
        return json.loads(state.storage.read_bytes(f"{task}/last_run.json"))["run"]
    except FileNotFoundError:
        return None


def _step(
    config: ScheduleConfig,
    command: str,
    settings: dict[str, Any],
    runner: Runner,
    deadline: float,
    result: Result,
    allowed: tuple[int, ...] = (0,),
) -> tuple[int, str]:
    """Runs one command with these settings; returns its exit code and last line. Raises TickFailed."""
    storage = {name: value for name, value in to_plain(config.storage).items() if name not in CREDENTIALS}
    settings = {**settings, "storage": {**storage, **settings.get("storage", {})}}
    with tempfile.TemporaryDirectory(prefix="maskfleet-schedule-") as scratch:
        file = Path(scratch) / f"{command}.yaml"
        file.write_text(yaml.safe_dump(settings))
        args = [command, "--config", str(file)]
        if config.schedule.submit_to is not None:
            args = ["submit", *args, "--address", config.schedule.submit_to]
        try:
            code, last_line = runner.run(args, max(1.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise TickFailed(str(error), result.steps) from None
    if code not in allowed:
        raise TickFailed(f"{command} ended with exit code {code}: {last_line}", result.steps)
    return code, last_line
