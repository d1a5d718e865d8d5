"""Progress on the terminal: one line that renews itself, or a line every few seconds where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from pipeline.bulk.progress import Progress
from pipeline.schema import OK

if TYPE_CHECKING:
    from jobs.training.train import TrainEvent


class ProgressLine:
    """Shows the newest state of something that takes time; use as a context manager."""

    def __init__(self, name: str, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self.name = name
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

    def show(self, text: str) -> None:
        """Takes the newest state; writes it when the last was written long enough ago."""
        self.last_text = text
        if time.monotonic() - self.last_time >= self.every_s:
            self.last_time = time.monotonic()
            self._write(text, end="" if self.live else "\n")
            if not self.live:
                self.last_text = ""

    def take(self, event: TrainEvent) -> None:
        """Takes what a training says: a step's line may be overwritten, everything else stays."""
        (self.note if event.is_note else self.show)(event.describe())

    def note(self, text: str) -> None:
        """Says something that stays."""
        self._write(text, end="\n")

    def _write(self, text: str, end: str) -> None:
        self.stream.write(f"{chr(13) + chr(27) + '[K' if self.live else ''}{self.name}: {text}{end}")
        self.stream.flush()


def describe(progress: Progress) -> str:
    """A bulk run's state in one line."""
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
        parts.append(f"{progress.num_workers} workers {progress.busy_share:.0%} busy")
    if progress.num_resumed:
        parts.insert(1, f"{progress.num_resumed:,} from before")
    return "  ".join(parts)


def format_seconds(seconds: float | None) -> str:
    """12.3 -> '0:12', None -> '?'."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
