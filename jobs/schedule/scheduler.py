"""Cron scheduler of `maskfleet schedule`: finds due ticks, starts each in one scheduler only, records its outcome.

`Scheduler.begin` compares the clock with the state and returns the ticks to run now. `Scheduler.end` records the
outcome of one. Neither waits nor runs anything, so that a test drives both through a week in a second.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim

from jobs.config.schedule import FailureSection, ScheduleConfig, TaskSection
from jobs.schedule.state import ScheduleState, TickState
from jobs.schedule.tasks import Runner, Stopped, TickFailed, run_tick
from pipeline.storage.stores import open_storage

Outcome = Literal["done", "gate_failed", "failed", "skipped", "missed"]
FAILURES = ("gate_failed", "failed")
CLOCKS_DIFFER = timedelta(minutes=5)  # by as much as this at most, where all is well
GRACE = timedelta(seconds=60)  # a start is over this long after its last try must have ended


@dataclass(frozen=True)
class Start:
    """A tick that this scheduler has started.

    Attributes:
        task: the task of the tick.
        tick: when it was due, in UTC.
        number: of this start among the starts of the tick, from 1.
        until: when other schedulers may start the tick again, in UTC.
    """

    task: TaskSection
    tick: datetime
    number: int
    until: datetime


@dataclass(frozen=True)
class Ended:
    """The end of a tick: its outcome, the reason where it is not 'done', and a line for each step that was finished."""

    outcome: Outcome
    reason: str = ""
    steps: tuple[str, ...] = ()


class Scheduler:
    """A scheduler; any number of them may share one state.

    Args:
        config: the tasks, and where the state is.
        say: writes one line of text.
    """

    def __init__(self, config: ScheduleConfig, say: Callable[[str], None] = lambda text: None) -> None:
        self.config = config
        self.state = ScheduleState(open_storage(config.schedule.state, config.storage))
        self.say = say
        self._said: set[str] = set()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def begin(self, now: datetime) -> list[Start]:
        """Starts the ticks that are due, at most one of each task, and records the skipped and the missed ones.

        Args:
            now: the time, with a zone.
        """
        starts = [self._begin(task, now.astimezone(UTC)) for task in self.config.tasks]
        return [start for start in starts if start is not None]

    def _begin(self, task: TaskSection, now: datetime) -> Start | None:
        zone = self.config.zone_of(task)
        newest = last_tick(task.cron, zone, now)
        since = self.state.since(task.name, newest - timedelta(seconds=1))
        after = max(since, self.state.cursor(task.name) or since)
        if after > now + CLOCKS_DIFFER:
            self._say_once(
                f"{task.name}: the state says that all is done up to {after:%Y-%m-%d %H:%M}Z, in the future: "
                "the clock of a scheduler is or was wrong; ticks are looked up one by one"
            )
            after = min(since, newest - timedelta(seconds=1))
        known = self.state.ticks(task.name, after)
        due = list(iter_ticks(task.cron, zone, after, now))
        open_ticks = [tick for tick in due if known.get(tick, TickState()).done is None]
        done_up_to = max((tick for tick in due if not open_ticks or tick < open_ticks[0]), default=None)
        if done_up_to is not None:
            self.state.move_cursor(task.name, done_up_to)
        started = [tick for tick in open_ticks if known.get(tick, TickState()).started]
        if any(_until(known[tick], now) > now for tick in started):
            self._wait(task, [tick for tick in open_ticks if tick not in started], known, now)
            return None
        wanted = self._wanted(task, open_ticks, known, now)
        if not wanted:
            return None
        first, *rest = wanted
        number = known.get(first, TickState()).last_number + 1
        until = now + (task.retries + 1) * timedelta(seconds=task.timeout_s + task.retry_wait_s) + GRACE
        mark = {"scheduler": self.name, "when": now.isoformat(), "until": until.isoformat()}
        if not self.state.start(task.name, first, number, mark):
            return None  # another scheduler has started it
        for tick in rest:
            if task.overlap == "queue" or not self._is_on_time(tick, now) or known.get(tick, TickState()).is_queued:
                self.state.queue(task.name, tick)
            else:
                self._record(task, tick, Ended("skipped", "an earlier tick is running"), now)
        return Start(task, first, number, until)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _wait(
        self, task: TaskSection, waiting: list[datetime], known: dict[datetime, TickState], now: datetime
    ) -> None:
        """Queues or skips the ticks that come due while one runs; late ones are left until it has ended."""
        for tick in waiting:
            if task.overlap == "queue":
                self.state.queue(task.name, tick)
            elif self._is_on_time(tick, now) and not known.get(tick, TickState()).is_queued:
                self._record(task, tick, Ended("skipped", "an earlier tick is running"), now)

    def _wanted(
        self, task: TaskSection, ticks: list[datetime], known: dict[datetime, TickState], now: datetime
    ) -> list[datetime]:
        """The ticks to run, oldest first. Missed ones that `task.missed` does not want are recorded as missed."""
        late = [
            tick
            for tick in ticks
            if not self._is_on_time(tick, now)
            and not (state := known.get(tick, TickState())).is_queued
            and not state.started
        ]
        if task.missed == "all":
            return ticks
        keep = late[-1:] if task.missed == "once" and late[-1:] == ticks[-1:] else []
        for tick in late:
            if tick not in keep:
                self._record(task, tick, Ended("missed", f"no scheduler was running; missed: {task.missed}"), now)
        return [tick for tick in ticks if tick not in late or tick in keep]

    def end(self, start: Start, ended: Ended, now: datetime) -> bool:
        """Records the end of a start, and notifies of a failure; returns False where the tick had a record already."""
        recorded = self._record(start.task, start.tick, ended, now)
        if recorded and ended.outcome in FAILURES:
            notify(self.config.on_failure, start, ended, self.say)
        return recorded

    def release(self, start: Start) -> None:
        """Gives up a start that was not run to its end, so that another scheduler may start the tick at once."""
        self.state.release(start.task.name, start.tick, start.number)

    def _record(self, task: TaskSection, tick: datetime, ended: Ended, now: datetime) -> bool:
        record = {
            "outcome": ended.outcome,
            "reason": ended.reason,
            "steps": list(ended.steps),
            "scheduler": self.name,
            "when": now.astimezone(UTC).isoformat(),
        }
        recorded = self.state.finish(task.name, tick, record)
        if recorded:
            self.say(f"{task.name} {tick:%Y-%m-%d %H:%M}Z: {ended.outcome}" + f": {ended.reason}" * bool(ended.reason))
        return recorded

    def _is_on_time(self, tick: datetime, now: datetime) -> bool:
        return now - tick <= timedelta(seconds=self.config.schedule.late_s)


def run_start(scheduler: Scheduler, start: Start, runner: Runner, clock: Callable[[], datetime]) -> Ended:
    """Runs one start, with its retries, and records its end.

    Raises:
        Stopped: the scheduler is being stopped; the start is released.
    """
    task, config = start.task, scheduler.config
    scheduler.say(f"{task.name} {start.tick:%Y-%m-%d %H:%M}Z: starts")
    ended = Ended("failed", "it was not run")
    for number in range(task.retries + 1):
        try:
            if number:
                runner.wait(task.retry_wait_s)
            result = run_tick(config, task, start.tick, scheduler.state, runner)
            reason = "; ".join(result.gates)
            ended = Ended("gate_failed" if result.gates else "done", reason, tuple(result.steps))
            break
        except Stopped:
            scheduler.release(start)
            raise
        except TickFailed as error:
            ended = Ended("failed", f"{error} (try {number + 1} of {task.retries + 1})", tuple(error.steps))
        except (ValueError, OSError) as error:
            ended = Ended("failed", f"{error} (try {number + 1} of {task.retries + 1})")
    scheduler.end(start, ended, clock())
    return ended


def run_once(scheduler: Scheduler, runner: Runner) -> list[Ended]:
    """Runs everything that is due, one tick after another, until nothing is; returns the ends of the ticks."""
    ended = []
    while starts := scheduler.begin(utc_now()):
        ended += [run_start(scheduler, start, runner, utc_now) for start in starts]
    return ended


def run_forever(scheduler: Scheduler, runner: Runner) -> None:
    """Runs ticks as they come due, each in a thread of its own, until it is interrupted."""
    busy: dict[str, threading.Thread] = {}
    try:
        while True:
            try:
                starts = scheduler.begin(utc_now())
            except OSError as error:  # the bucket does not answer now, but may later
                scheduler.say(f"the state cannot be read: {error}")
                starts = []
            for start in starts:
                thread = threading.Thread(target=_run_quietly, args=(scheduler, start, runner), daemon=True)
                thread.start()
                busy[start.task.name] = thread
            time.sleep(min(scheduler.config.schedule.poll_s, _seconds_to_next(scheduler.config)))
    finally:
        runner.stop()
        for thread in busy.values():
            thread.join(30)


def _run_quietly(scheduler: Scheduler, start: Start, runner: Runner) -> None:
    try:
        run_start(scheduler, start, runner, utc_now)
    except Stopped:
        pass
    except OSError as error:
        scheduler.say(f"{start.task.name}: its end cannot be recorded: {error}")


def notify(to: FailureSection, start: Start, ended: Ended, say: Callable[[str], None]) -> None:
    """Sends a failure as JSON to the command and the webhook of `on_failure`; an error of these is only logged."""
    message = {
        "task": start.task.name,
        "tick": start.tick.isoformat(),
        "outcome": ended.outcome,
        "reason": ended.reason,
    }
    body = json.dumps(message).encode()
    if to.command is not None:
        try:
            subprocess.run(to.command, input=body, timeout=to.timeout_s, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError) as error:
            say(f"on_failure.command failed: {error}")
    if to.webhook is not None:
        request = urllib.request.Request(
            to.webhook.get_secret_value(), data=body, headers={"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=to.timeout_s).close()
        except (OSError, ValueError) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            say(f"on_failure.webhook failed: {status}")  # its URL may hold a secret


def iter_ticks(cron: str, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    """The ticks of a cron expression in (after, until], in UTC, oldest first."""
    for tick in CronSim(cron, after.astimezone(zone)):
        tick = tick.astimezone(UTC)
        if tick > until:
            return
        if tick > after:
            yield tick


def last_tick(cron: str, zone: ZoneInfo, now: datetime) -> datetime:
    """The newest tick that is not later than now, in UTC."""
    return next(CronSim(cron, now.astimezone(zone) + timedelta(seconds=1), reverse=True)).astimezone(UTC)


def next_tick(cron: str, zone: ZoneInfo, now: datetime) -> datetime:
    """The first tick later than now, in UTC."""
    return next(CronSim(cron, now.astimezone(zone))).astimezone(UTC)


def describe_schedule(config: ScheduleConfig) -> str:
    """A line for each task: its next tick, in its time zone."""
    now = utc_now()
    lines = []
    for task in config.tasks:
        zone = config.zone_of(task)
        local = next_tick(task.cron, zone, now).astimezone(zone)
        lines.append(f"{task.name}: next {local:%Y-%m-%d %H:%M} {zone.key} ({task.cron})")
    return "\n".join(lines)


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def _until(state: TickState, now: datetime) -> datetime:
    """When the newest start of a tick is over; at once where it was noted in the future, by a clock that was wrong."""
    when, until = (datetime.fromisoformat(state.started[-1][name]) for name in ("when", "until"))
    return now if when > now + CLOCKS_DIFFER else until


def _seconds_to_next(config: ScheduleConfig) -> float:
    now = utc_now()
    ticks = (next_tick(task.cron, config.zone_of(task), now) for task in config.tasks)
    return max(0.05, (min(ticks) - now).total_seconds())
