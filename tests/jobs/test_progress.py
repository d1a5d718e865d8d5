"""Progress on the terminal: what the line says of a bulk run, and how often it is written."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from jobs.progress import ProgressLine, bar, describe, format_seconds
from jobs.training.events import TrainEvent
from pipeline.bulk.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_when_the_last_is_old_enough_and_always_the_newest_at_the_end() -> None:
    stream = io.StringIO()
    with ProgressLine("segment", stream, every_s=3600) as line:
        for text in ("one", "two", "three"):
            line.show(text)
        line.note("a note")
    assert stream.getvalue() == "segment: one\nsegment: a note\nsegment: three\n"
    stream = io.StringIO()
    with ProgressLine("segment", stream, every_s=0) as line:
        line.show("one")
        line.show("two")
    assert stream.getvalue() == "segment: one\nsegment: two\n", "the newest is not written twice"


def test_a_terminal_gets_one_line_that_is_overwritten() -> None:
    stream = Terminal()
    with ProgressLine("train", stream) as line:
        line.show("step 1")
        line.note("validated")
        line.show("step 2")
    start = "\r\x1b[Ktrain: "
    assert stream.getvalue() == f"{start}step 1{start}validated\n{start}step 2\n"


def test_a_terminal_shows_a_bar_that_fits_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with ProgressLine("segment", stream) as line:
        line.show_run(Progress(2000, 500, {"ok": 250}, 1234, 50.0))
        shown = stream.getvalue().removeprefix("\r\x1b[K")
        assert shown.startswith("segment: [#######-------------]  37%  750/2,000 images") and len(shown) == 59
    log = io.StringIO()
    with ProgressLine("segment", log) as line:
        line.show_run(Progress(2000, 500, {"ok": 250}, 1234, 50.0))
    assert log.getvalue().startswith("segment: 750/2,000 images")
    assert (bar(0), bar(0.999), bar(1)) == (f"[{'-' * 20}]   0%", f"[{'#' * 19}-]  99%", f"[{'#' * 20}] 100%")


def test_a_training_on_a_terminal_has_a_bar_too() -> None:
    stream = Terminal()
    with ProgressLine("train", stream) as line:
        line.take(TrainEvent("step", "step 30/120", 0, {"step": 30, "max_steps": 120}))
        line.take(TrainEvent("validation", "step 30: segm_AP 0.5", 0, {"step": 30}))
        line.take(TrainEvent("checkpoint", "checkpoint step-00000030", 0, {"step": 30}))
    assert "checkpoint" not in stream.getvalue()
    assert "train: [#####---------------]  25%  step 30/120" in stream.getvalue()
    assert "train: step 30: segm_AP 0.5\n" in stream.getvalue()


def test_a_quiet_command_shows_no_progress() -> None:
    stream = Terminal()
    with ProgressLine("train", stream, quiet=True) as line:
        line.show("step 1", 0.5)
        line.note("validated")
    assert stream.getvalue() == ""


def test_a_bulk_run_in_one_line() -> None:
    progress = Progress(2000, 500, {"ok": 240, "corrupt": 7, "changed": 3}, 1234, 50.0, num_workers=2, busy_share=0.914)
    alone = replace(progress, num_workers=1)
    assert describe(progress) == (
        "750/2,000 images  500 from before  5.0 images/s  1,234 instances  ETA 4:10  "
        "failed 10 (changed 3, corrupt 7)  2 workers 91% busy"
    )
    assert describe(alone).endswith("1 worker 91% busy")
    assert (
        describe(Progress(10, 0, {"ok": 10}, 0, 4.0)) == "10/10 images  2.5 images/s  0 instances  ETA 0:00  failed 0"
    )


def test_before_the_first_image_the_workers_are_starting() -> None:
    assert describe(Progress(2000, 0, {}, 0, 12.3)) == "0/2,000 images  workers are starting, 0:12"
    assert describe(Progress(2000, 500, {}, 0, 12.3)).startswith("500/2,000 images  500 from before  0.0 images/s")
    assert "ETA ?" in describe(Progress(2000, 500, {}, 0, 12.3))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0:00"), (12.3, "0:12"), (59.6, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01")],
)
def test_seconds_as_people_read_them(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text
