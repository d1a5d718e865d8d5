"""Shell completion, asked as the shells ask: through the program's own environment variables."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app
from jobs.commands import CONFIGURED
from jobs.config.completion import complete_words
from jobs.config.describe import settings_of
from tests.paths import ROOT

PROGRAM = str(Path(sys.executable).parent / "maskfleet")
HEAVY = "import sys; from maskfleet.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"


def ask(line: str, folder: Path, shell: str = "fish") -> list[str]:
    """What a shell is offered for the last word of a line; `fish` and `zsh` give whole words, bash splits at =."""
    environment = {**os.environ, "_MASKFLEET_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    environment["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run([PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return [offer.split("\t")[0] for offer in done.stdout.splitlines()]


def in_bash(line: str, folder: Path) -> list[str]:
    """What bash itself has in COMPREPLY for a line, by the program's own script."""
    # bash splits a line at blanks and at =, each of which is a word of its own.
    words = [part for word in line.split(" ") for part in ([*word.replace("=", " = ").split(" ")] if word else [""])]
    words = [word for word in words[:-1] if word] + words[-1:]
    if line.endswith("="):
        words.pop()
    script = f"""
        eval "$(_MASKFLEET_COMPLETE=source_bash {PROGRAM})"
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
        $(complete -p maskfleet | sed 's/.*-F \\([^ ]*\\) .*/\\1/') {PROGRAM}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return [offer for offer in done.stdout.splitlines() if offer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    (tmp_path / "phantom.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("asked", [ask, in_bash])
def test_commands_options_sections_keys_and_values_are_offered(
    asked: Callable[[str, Path], list[str]], folder: Path
) -> None:
    assert asked("maskfleet se", folder) == ["segment", "settings"]
    assert asked("maskfleet segment --p", folder) == ["--print-config", "--profile"]
    assert {"model.", "segment."} <= set(asked("maskfleet segment ", folder))
    assert asked("maskfleet segment --quiet model.", folder) == [
        "model.checkpoint=",
        "model.network=",
        "model.classes=",
    ]
    assert asked("maskfleet train model.spec.ne", folder) == [
        f"model.spec.neck={name}" for name in ("fpn", "c4", "c5", "dc5")
    ]
    assert asked("maskfleet segment --config ti", folder) == ["tiny_cpu"]
    assert asked("maskfleet settings ver", folder) == ["verify"]
    assert asked("maskfleet settings train mo", folder) == ["model", "model.spec"]
    assert asked("maskfleet submit ret", folder) == ["retry"]
    assert asked("maskfleet retry run retry.", folder) == ["retry.statuses=", "retry.statuses=["]
    assert asked("maskfleet jobs st", folder) == ["status", "stop"]


def test_the_value_is_offered_as_the_shell_wants_it(folder: Path) -> None:
    assert ask("maskfleet segment segment.mode=", folder) == ["segment.mode=exact", "segment.mode=fast"]
    assert ask("maskfleet segment segment.mode=f", folder) == ["segment.mode=fast"]
    assert in_bash("maskfleet segment segment.mode=", folder) == ["exact", "fast"]
    assert in_bash("maskfleet segment output.uri=o segment.mode=f", folder) == ["fast"]


def test_files_are_offered_where_a_word_or_value_may_be_one(folder: Path) -> None:
    assert ask("maskfleet report ph", folder) == ["phantom.yaml", "photos/"]
    assert ask("maskfleet segment input.uri=photos/", folder) == ["input.uri=photos/a.jpg"]
    assert in_bash("maskfleet segment input.uri=ph", folder) == [], "bash completes the name of a file itself"


def test_a_key_alone_gets_no_space_behind_its_equals_sign(folder: Path) -> None:
    """Two offers with a common start: the shells then put in the start, and no space."""
    assert ask("maskfleet segment segment.ba", folder) == ["segment.batch_size=", "segment.batch_size=4"]
    assert ask("maskfleet segment output.u", folder) == ["output.uri=", "output.uri=./"]


def test_every_key_is_offered_below_its_section() -> None:
    group: Any = typer.main.get_command(app)
    for name, command in CONFIGURED.items():
        context = group.commands[name].make_context(name, [], resilient_parsing=True)
        keys = {each.key for each in settings_of(command.config) if "[]" not in each.key}
        offered = [offer for key in keys for offer, _ in complete_words(context, key)]
        assert {offer.partition("=")[0] for offer in offered} == keys


@pytest.mark.parametrize("command", ["train", "segment", "evaluate", "schedule", "retry"])
def test_it_is_quick_and_loads_nothing_heavy(command: str, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ask(f"maskfleet {command} ", folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2, "0.5 on a machine with nothing else to do"
    program = HEAVY + "print(*(name for name in ('torch', 'ray', 'pandas') if name in sys.modules))"
    environment = {**os.environ, "_MASKFLEET_COMPLETE": "complete_fish", "PYTHONPATH": str(ROOT)}
    environment |= {"_TYPER_COMPLETE_ARGS": f"maskfleet {command} ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    words = [sys.executable, "-c", "import sys; sys.argv[0] = 'maskfleet'\n" + program]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr
