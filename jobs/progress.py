"""Progress output: a bar that is overwritten on a terminal, or a new line every few seconds in a log."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from pipeline.bulk.progress import Progress
from pipeline.schema import OK

if TYPE_CHECKING:
    from jobs.training.events import TrainEvent


BAR_WIDTH = 20


class ProgressLine:
    """Writes the newest state of a long operation; a context manager, which writes the last state at its end.

    Args:
        name: stands in front of each line.
        stream: where lines are written; None is stderr.
        every_s: least seconds between two lines of a log; a terminal's line is renewed every 0.2 s.
        quiet: whether nothing is written.
    """

    def __init__(self, name: str, stream: TextIO | None = None, every_s: float = 5.0, *, quiet: bool = False) -> None:
        self.name, self.quiet = name, quiet
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every_s = 0.2 if self.live else every_s
        self.last_time = float("-inf")
        self.last_text = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self.last_text:
            self._write(self.last_text, end="\n")

    def show(self, text: str, fraction: float | None = None) -> None:
        """Takes the newest state, and writes it when the last one was written at least `every_s` seconds ago.

        Args:
            fraction: what is done of the whole, 0..1; a bar on a terminal. None where it is not known.
        """
        self.last_text = text if fraction is None or not self.live else f"{bar(fraction)}  {text}"
        if time.monotonic() - self.last_time >= self.every_s:
            self.last_time = time.monotonic()
            self._write(self.last_text, end="" if self.live else "\n")
            if not self.live:
                self.last_text = ""

    def show_run(self, progress: Progress) -> None:
        """Takes the newest state of a bulk run."""
        self.show(describe(progress), progress.num_done / progress.num_images if progress.num_images else None)

    def take(self, event: TrainEvent) -> None:
        """Takes an event of a training: notes stay on the screen, a step's line is overwritten by the next state.

        Checkpoints are not said: there are many, and the result of the training names the last.
        """
        if event.is_note:
            self.note(event.describe())
        elif event.kind != "checkpoint":
            step, max_steps = (event.values.get(name) for name in ("step", "max_steps"))
            self.show(event.describe(), step / max_steps if step and max_steps else None)

    def note(self, text: str) -> None:
        """Writes a line that is not overwritten."""
        self._write(text, end="\n")

    def _write(self, text: str, end: str) -> None:
        if self.quiet:
            return
        line = f"{self.name}: {text}"
        if self.live and not end:  # a line that wraps could not be overwritten
            line = line[: shutil.get_terminal_size().columns - 1]
        self.stream.write(f"{chr(13) + chr(27) + '[K' if self.live else ''}{line}{end}")
        self.stream.flush()


def bar(fraction: float) -> str:
    """A fraction (0..1) as a bar of 20 characters and its percentage, rounded down: '[#####---------------]  25%'."""
    return f"[{'#' * int(fraction * BAR_WIDTH):-<{BAR_WIDTH}}] {int(fraction * 100):3d}%"


def describe(progress: Progress) -> str:
    """A bulk run's state in one line: images done, speed, instances, time left, failures by status, workers."""
    if not progress.num_done and not progress.statuses:
        return f"0/{progress.num_images:,} images  workers are starting, {format_seconds(progress.elapsed_s)}"
    failed = {status: count for status, count in progress.statuses.items() if status != OK}
    parts = [
        f"{progress.num_done:,}/{progress.num_images:,} images",
        f"{progress.images_per_s:.1f} images/s",
        f"{progress.num_instances:,} instances",
        f"ETA {format_seconds(progress.eta_s)}",
        f"failed {progress.num_failed}"
        + (f" ({', '.join(f'{status} {count}' for status, count in sorted(failed.items()))})" if failed else ""),
    ]
    if progress.num_workers:
        plural = "" if progress.num_workers == 1 else "s"
        parts.append(f"{progress.num_workers:,} worker{plural} {progress.busy_share:.0%} busy")
    if progress.num_resumed:
        parts.insert(1, f"{progress.num_resumed:,} from before")
    return "  ".join(parts)


def format_seconds(seconds: float | None) -> str:
    """Seconds as M:SS or H:MM:SS, rounded: 12.3 -> '0:12', 3725 -> '1:02:05', None -> '?'."""
    if seconds is None:
        return "?"
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_s:02d}" if hours else f"{minutes}:{whole_s:02d}"
