"""Shell completion, asked as the shells ask: through the program's own environment variables."""

from __future__ import annotations

import os
import pty
import resource
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app
from jobs.commands import CONFIGURED
from jobs.config.completion import complete_words
from jobs.config.describe import settings_of
from tests.debian import Unavailable, library_folders, unpacked
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


class Zsh:
    """A real zsh at a terminal of its own, with our completion loaded by the program's own script."""

    def __init__(self, folder: Path) -> None:
        root = unpacked("zsh", "zsh")
        modules = next(root.rglob("complete.so")).parent.parent
        functions = next(root.rglob("compinit")).parent.parent
        folders = " ".join(sorted({str(path.parent) for path in functions.rglob("*") if path.is_file()}))
        libraries = ":".join(map(str, library_folders(root)))
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "TERM": "dumb", "HOME": str(folder)}
        environment["PATH"] = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
        self.terminal, inner = pty.openpty()
        shell = next(path for path in (root / "bin/zsh", root / "usr/bin/zsh") if path.exists())
        self.process = subprocess.Popen(
            [shell, "-f", "-i"], stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environment, close_fds=True
        )
        os.close(inner)
        self.type(
            f"module_path=({modules}); fpath=({folders}); autoload -Uz compinit; compinit -u -D; echo rea''dy\n",
            "ready",
        )
        self.type('eval "$(_MASKFLEET_COMPLETE=source_zsh maskfleet)"; echo com""plete\n', "complete")

    def type(self, keys: str, until: str) -> str:
        """What the terminal shows after these keys, up to a text that must come within 60 s."""
        os.write(self.terminal, keys.encode())
        shown, deadline_s = "", time.monotonic() + 60
        while until not in shown:
            assert time.monotonic() < deadline_s, shown
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536).decode(errors="replace")
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture
def zsh(folder: Path) -> Iterator[Zsh]:
    try:
        shell = Zsh(folder)
    except Unavailable as reason:
        pytest.skip(f"no zsh here: {reason}")
    yield shell
    shell.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    (tmp_path / "phantom.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("asked", [ask, pytest.param(in_bash, marks=pytest.mark.long)])
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


@pytest.mark.long
def test_zsh_completes_words_keys_values_and_files(zsh: Zsh) -> None:
    for typed, added in (
        ("maskfleet settings ver", "ify "),
        ("maskfleet segment segment.mode=f", "ast "),
        ("maskfleet train model.spec.ne", "ck="),
        ("maskfleet segment --config ti", "ny_cpu "),
        ("maskfleet predict pho", "tos/"),
    ):
        zsh.type(f"{typed}\t", typed + added)
        zsh.type("\x15", "")  # Ctrl-U: an empty line again
    assert "segment " in zsh.type("maskfleet se\t", "settings ")


def test_the_value_is_offered_as_the_shell_wants_it(folder: Path) -> None:
    modes = ["segment.mode=exact", "segment.mode=fast", "segment.mode=int8"]
    assert ask("maskfleet segment segment.mode=", folder) == modes
    assert ask("maskfleet segment segment.mode=f", folder) == ["segment.mode=fast"]
    assert in_bash("maskfleet segment segment.mode=", folder) == ["exact", "fast", "int8"]
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
        sections = {key.rpartition(".")[0] + "." for key in keys}
        offered = {offer for section in sections for offer, _ in complete_words(context, section)} - sections
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
