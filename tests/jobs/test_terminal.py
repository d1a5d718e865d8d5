"""Exit codes and the one sentence that goes with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
import typer

from jobs.config.load import ConfigError
from jobs.terminal import Exit, check_or_refuse, end_at_gate, run_or_fail


def failing(error: Exception) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("stage", "error", "code"),
    [
        (check_or_refuse, ValueError("segment.x is 3"), Exit.BAD_INPUT),
        (check_or_refuse, FileNotFoundError("no photo"), Exit.BAD_INPUT),
        (run_or_fail, ConfigError("segment.x is 3"), Exit.BAD_INPUT),
        (run_or_fail, ValueError("segment.x is 3"), Exit.FAILED),
        (run_or_fail, OSError("disk full"), Exit.FAILED),
        (run_or_fail, KeyError("unforeseen"), Exit.FAILED),
    ],
)
def test_a_fault_ends_with_its_code_and_its_reason_as_the_last_line(
    stage: Callable[[Callable[[], Any]], Any], error: Exception, code: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        stage(failing(error))
    assert ended.value.exit_code == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("maskfleet: ") and str(error) in last


def test_a_fault_that_is_no_wrong_value_is_named_by_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        run_or_fail(failing(ZeroDivisionError("division by zero")))
    assert capsys.readouterr().err.splitlines()[-1] == "maskfleet: ZeroDivisionError: division by zero"


def test_what_succeeds_gives_its_value() -> None:
    assert check_or_refuse(lambda: 3) == 3 and run_or_fail(lambda: 4) == 4


def test_a_gate_ends_with_its_own_code_and_all_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    end_at_gate([])
    with pytest.raises(typer.Exit) as ended:
        end_at_gate(["AP 0.3 below 0.5", "recall 0.1 below 0.2"])
    assert ended.value.exit_code == Exit.GATE
    said = capsys.readouterr().err
    assert "AP 0.3 below 0.5" in said and "recall 0.1 below 0.2" in said


RAY_TEXT = """[36mray::MapWorker(MapBatches(W)).submit()[39m (pid=1, ip=10.0.0.1)
  File "w.py", line 3, in __call__
    raise FileNotFoundError("disk is gone")
{}
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RAY_TEXT.format("FileNotFoundError: disk is gone"), "FileNotFoundError: disk is gone"),
        (RAY_TEXT.format("pipeline.storage.base.StorageError: s3://a is gone"), "s3://a is gone"),
        (RAY_TEXT.format("OSError: gone\n\nray.exceptions.ActorDiedError: The actor died"), "OSError: gone"),
        ("The actor died unexpectedly before finishing this task.", "a worker process was lost: it was killed"),
        ("", "a worker process was lost"),
    ],
)
def test_an_error_of_rays_ends_with_its_cause_in_our_words_and_no_traceback(
    text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        run_or_fail(failing(ray.exceptions.RaySystemError(text)))
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("maskfleet: ") and reason in error.splitlines()[-1]
    assert "Traceback" not in error
