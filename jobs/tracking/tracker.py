"""Thread that keeps MLflow runs up to date while a command works, and that never holds the command up for long."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from jobs.config.load import ConfigError
from jobs.config.tracking import TrackingSection
from jobs.tracking.store import MlflowStore, RunRecord, reason_of

OPEN_S = 25.0  # in which a store must answer before a command starts
END_S = 60.0  # for which the end of a command waits for a run to be sent
CHECKPOINT_END_S = 1800.0  # the same, with a checkpoint to send
INTERRUPTED_S = 3.0  # the same, for all runs, where the command was interrupted, which has some seconds for all
RETRY_S = 3.0
Result = TypeVar("Result")


def check_tracking(section: TrackingSection) -> None:
    """Checks that MLflow is installed and its store answers, where there is one; writes nothing.

    Raises:
        ConfigError: It does not, or refuses; within OPEN_S.
    """
    if section.uri is not None:
        with Tracker(section, lambda line: None) as tracker:
            tracker.call(tracker.store.check)


def open_tracker(
    section: TrackingSection, say: Callable[[str], None], end_s: float = END_S
) -> contextlib.AbstractContextManager[Tracker | None]:
    """A `Tracker`, or None where tracking.uri is null."""
    return contextlib.nullcontext() if section.uri is None else Tracker(section, say, end_s)


class Tracker:
    """Sends records to MLflow from a thread of its own; a context manager, which ends the runs that are still open.

    Their status is then "FINISHED", after an error "FAILED", after an interrupt "KILLED". A failure is said once, and
    what was not sent is sent with the next values, or at the end.

    Args:
        section: Names the store, which `uri` must do.
        say: Called with a line for people, from the thread.
        end_s: Seconds that the last values of a run may take.

    Attributes:
        store: MLflow itself, for the thread alone.
        outcome: At the end, a line that says where the first record's run is, or that values were not sent.
    """

    def __init__(self, section: TrackingSection, say: Callable[[str], None], end_s: float = END_S) -> None:
        self.outcome = ""
        self._uri = section.uri or ""
        self._say = say
        self._end_s = end_s
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._records: dict[str, RunRecord] = {}
        self._waiting: set[str] = set()
        self._ended: dict[str, str] = {}
        self._has_files: set[str] = set()
        self._unsent: dict[str, str] = {}
        self._num_sent = 0
        threading.Thread(target=self._run, name="tracking", daemon=True).start()
        try:
            self.store = self.call(lambda: MlflowStore(section))
        except BaseException:
            self._work.put(None)
            raise

    def call(self, work: Callable[[], Result]) -> Result:
        """Does something in the thread, and waits for it.

        Raises:
            ConfigError: It failed, or took longer than OPEN_S.
        """
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        try:
            return future.result(OPEN_S)
        except ConfigError:
            raise
        except TimeoutError:
            reason = f"it does not answer within {OPEN_S:.0f} s"
        except Exception as error:
            reason = reason_of(error)
        raise ConfigError(f"tracking.uri: MLflow at {self._uri} cannot be used: {reason}")

    def start(self, record: RunRecord) -> None:
        """Finds or creates the run of a record, and waits for it.

        Raises:
            ConfigError: MLflow does not answer, or refuses.
        """
        self.call(lambda: self.store.open(record))
        self._records[record.id] = record

    def update(self, record: RunRecord) -> None:
        """Has the run of a record brought up to date soon, and created where there is none; returns at once."""
        self._records[record.id] = record
        if record.id not in self._waiting:
            self._waiting.add(record.id)
            self._work.put(lambda: self._send(record))

    def end(self, record: RunRecord, status: str) -> None:
        """Has the run of a record brought up to date and ended soon; returns at once. See `MlflowStore.end`."""
        self._records[record.id] = record
        self._ended[record.id] = status
        self._work.put(lambda: self._send(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "FINISHED" if kind is None else "KILLED" if is_interrupted else "FAILED"
        end_s = INTERRUPTED_S if is_interrupted else self._end_s
        done = threading.Event()
        for record in [*self._records.values()]:
            if record.id not in self._ended:
                self.end(record, status)
        if not is_interrupted:
            self._work.put(self._send_again)
        self._work.put(done.set)
        self._work.put(None)
        is_over, num_sent = not self._records, -1
        while not is_over and num_sent != self._num_sent:
            num_sent = self._num_sent
            is_over = done.wait(end_s)
            if is_interrupted:
                break
        first = next(iter(self._records.values()), None)
        late = [] if is_over else [f"it does not take the rest within {end_s:.0f} s"]
        if reasons := [*self._unsent.values(), *late]:
            self.outcome = (
                f"WARNING: not all was sent to MLflow at {self._uri}: {reasons[0]}; the output has it all, and the "
                "same command again sends it"
            )
            if kind is not None:  # whoever would say it does not come to it
                self._say(self.outcome)
        elif first is not None:
            self.outcome = f"MLflow run {first.name}: {self.store.place_of(first)}"

    def _send_again(self) -> None:
        """Tries once more to send what was not sent."""
        if self._unsent:
            time.sleep(RETRY_S)
            for name in [*self._unsent]:
                self._send(self._records[name])

    def _send(self, record: RunRecord) -> None:
        """Brings a run up to date, and ends it where its work has ended; a failure is kept for later."""
        self._waiting.discard(record.id)
        status = self._ended.get(record.id)
        try:
            self.store.open(record, is_running=status is None)
            self.store.send_rows(record)
            if status is not None:
                self.store.end(record, status)
            if status is not None or record.id not in self._has_files:
                self.store.send_files(record)
                self._has_files.add(record.id)
        except Exception as error:  # whatever it is, the command itself goes on
            self.store.forget(record)
            if not self._unsent:
                self._say(f"MLflow at {self._uri} does not take what is sent: {reason_of(error)}; it is sent later")
            self._unsent[record.id] = reason_of(error)
        else:
            self._unsent.pop(record.id, None)
            self._num_sent += 1

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
