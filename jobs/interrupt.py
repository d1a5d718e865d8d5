"""Ctrl-C and SIGTERM: the first one ends the command in words within seconds, the second one at once.

A signal's first arrival raises `Interrupted` in the main thread, so that `finally` blocks give back what the command
holds. `Interrupts.end` then names what is kept and how to go on, and ends the process with `Exit.INTERRUPTED`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs.terminal import Exit

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_S = 9.0  # what ending may take at most; the process is then ended as by a second signal
CHECKPOINT_S = 900.0  # an interrupted training whose workers have written no checkpoint by then is ended without one
ONE_SIGNAL_S = 0.3  # a shell, `timeout` or a supervisor may send one request to end to the process and to its group

# For each command: what is being done once it is interrupted, and how to go on afterwards.
_GO_ON = "run the same command again to go on"
_SHARDS = ("shards that are not committed are given up", f"what is committed is kept; {_GO_ON}")
_JOB = ("ending", "a job that was submitted goes on; see: maskfleet jobs list")
SENTENCES = {
    "segment": _SHARDS,
    "retry": _SHARDS,
    "train": ("ending", f"{_GO_ON} from the newest checkpoint"),
    "sweep": (
        "trainings under way are ended",
        f"{_GO_ON} from their newest checkpoints",
    ),
    "demo": ("ending", _GO_ON),
    "schedule": ("commands under way are ended", "start it again to go on"),
    "submit": _JOB,
    "jobs": ("ending", "jobs of the cluster are left as they are"),
}
OTHER = ("ending", "run the same command again; it starts anew")


class Interrupted(KeyboardInterrupt):
    """The command was asked to end, by Ctrl-C, SIGTERM or the end of its terminal.

    Attributes:
        go_on: what is kept and how to go on; the last line of the command.
    """

    def __init__(self, go_on: str) -> None:
        super().__init__(go_on)
        self.go_on = go_on
        self._last_resort: threading.Timer | None = None
        self._processes = _open_descendants()  # now: later, some may have lost the parents that lead to them

    def end_within(self, seconds: float) -> None:
        """Ends the process this many seconds from now, whatever it does then; replaces an earlier limit."""
        if self._last_resort is not None:
            self._last_resort.cancel()
        self._last_resort = threading.Timer(seconds, self.end)
        self._last_resort.daemon = True
        self._last_resort.start()

    def end(self, how: str = "") -> NoReturn:
        """Ends this process and all that it has started, Ray's included. Threads that are busy are not waited for."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                stream.flush()
        _write(f"interrupted: {how}{self.go_on}")
        for child in multiprocessing.active_children():
            child.kill()
        for process in (*self._processes, *_open_descendants()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        os._exit(Exit.INTERRUPTED)


class Interrupts:
    """Handler of the signals that end a command.

    Args:
        command: name of the command, a key of SENTENCES or any other.
    """

    def __init__(self, command: str) -> None:
        self.doing, self.go_on = SENTENCES.get(command, OTHER)
        self.first: Interrupted | None = None
        self._arrived_at = 0.0

    def listen(self) -> None:
        """Takes the signals from now on; one that the process was started to ignore (`nohup`, `&`) stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self._arrived_at = time.monotonic()
            self.first = Interrupted(self.go_on)
            self.first.end_within(END_S)
            if _is_importing(frame):
                self.first.end()
            _write(f"interrupted: {self.doing}; again ends it at once")
            signal.raise_signal(number)  # so that Python takes those that came with it now, and not after a long call
            raise self.first
        if time.monotonic() - self._arrived_at > ONE_SIGNAL_S:
            self.first.end("ended at once; ")

    def finish(self, code: int) -> None:
        """Lets a signal that comes after the command's end, as Python ends, end it sooner with the same exit code."""
        for number in SIGNALS:
            if signal.getsignal(number) == self._take:
                signal.signal(number, lambda number, frame: os._exit(code))

    def end(self) -> NoReturn:
        """Ends the process after an interrupt: its last line says how to go on."""
        assert self.first is not None
        self.first.end()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether Python imports a module, where it would swallow an exception or make another one of it."""
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _open_descendants() -> list[int]:
    """A file descriptor for each process below this one; none where the system has no /proc (macOS)."""
    waiting, descriptors = [os.getpid()], list[int]()
    while waiting:
        for file in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, file.read_text().split()):
                    waiting.append(child)
                    descriptors.append(os.pidfd_open(child))
    return descriptors


def _write(text: str) -> None:
    """Writes a line to stderr, past its buffer, which the interrupted code may be using; a terminal may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) if os.isatty(2) else ''}maskfleet: {text}\n".encode())
