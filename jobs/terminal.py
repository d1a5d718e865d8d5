"""What commands print, how they name a fault in one sentence, and the exit codes they end with."""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any, NoReturn

import typer

# Packages whose errors say all that there is to say; a traceback is printed of others.
FORESEEN = ("jobs", "pipeline", "model", "ray")
# Errors of a place that is to be written: bad input, whenever they show.
IN_THE_WAY = {
    FileExistsError: "is there already; choose another place",
    NotADirectoryError: "is a file where a folder is needed; choose another place",
    IsADirectoryError: "is a folder where a file is needed; choose another place",
}


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    TOO_MANY_FAILED = 3
    GATE = 4
    INTERRUPTED = 130


def check_or_refuse(check: Callable[[], Any]) -> Any:
    """Runs a check before anything starts; a wrong value or a missing file ends with exit code 2."""
    try:
        return check()
    except (ValueError, OSError) as error:
        fail(_reason(error), Exit.BAD_INPUT)


def run_or_fail(work: Callable[[], Any], progress: AbstractContextManager[Any] | None = None) -> Any:
    """Runs the work itself; a wrong setting that only shows then ends with 2, any other fault with 1.

    The context `progress` ends before the reason is written, so that the reason is the last line.
    """
    try:
        with progress or nullcontext():
            return work()
    except (ValueError, OSError) as error:
        from jobs.config.load import ConfigError

        fail(_reason(error), Exit.BAD_INPUT if isinstance(error, (ConfigError, *IN_THE_WAY)) else Exit.FAILED)
    except ModuleNotFoundError:  # a smaller installation: the program says so
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in FORESEEN:
            traceback.print_exc()
        fail(_reason(error), Exit.FAILED)


def end_at_gate(reasons: list[str]) -> None:
    """Ends with exit code 4 where a gate failed."""
    for reason in reasons:
        sys.stderr.write(f"maskfleet: gate failed: {reason}\n")
    if reasons:
        raise typer.Exit(Exit.GATE)


def _reason(error: BaseException) -> str:
    """What went wrong in one sentence; of an error that crossed the cluster, the original one."""
    cause = getattr(error, "cause", None) or error
    package = type(cause).__module__.split(".")[0]
    if package == "ray":
        return _reason_in(str(error))
    if type(cause) in IN_THE_WAY and isinstance(cause, OSError) and cause.filename is not None:
        return f"{cause.filename2 or cause.filename} {IN_THE_WAY[type(cause)]}"
    text = str(cause).strip()
    is_ours = isinstance(cause, ValueError) or package in FORESEEN
    return text if is_ours and text else f"{type(cause).__name__}: {text}".rstrip(": ")


def _reason_in(text: str) -> str:
    """The cause in the text of an error of Ray's, which holds the traceback of the process that failed, if it did."""
    for line in reversed(re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()):
        named = re.fullmatch(
            r"(?P<place>[\w.]*\.)?(?P<name>\w+(Error|Exception|Interrupt|Exit))(: (?P<text>.+))?", line
        )
        if named is not None and not (named["place"] or "").startswith("ray."):
            ours = (named["place"] or "").split(".")[0] in FORESEEN and named["text"]
            return named["text"] if ours else line.removeprefix(named["place"] or "")
    return "a worker process was lost: it was killed, or its machine ran out of memory or was taken away"


def fail(reason: str, code: int) -> NoReturn:
    """Writes the reason to stderr and ends with the exit code."""
    sys.stderr.write(f"maskfleet: {reason}\n")
    raise typer.Exit(code)


def refuse_name(what: str, name: str, allowed: Iterable[str]) -> NoReturn:
    """Ends with exit code 2 for a name that is none of those allowed: "settings: no command 'trian'; ..."."""
    names = list(allowed)
    similar = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    fail(f"{what} {name!r}; {hint}allowed are {', '.join(names)}", Exit.BAD_INPUT)


def say(text: str) -> None:
    """Writes a line to stdout at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table_width() -> int:
    """Characters of a line that a table may take: those of the terminal, elsewhere as many as it needs."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def print_table(table: Any) -> None:
    """Prints a table of rich's, folded to the width of a terminal."""
    from rich.console import Console

    Console(width=table_width()).print(table)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 photo", "2,000 photos"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
