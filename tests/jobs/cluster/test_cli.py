"""`maskfleet submit` and `maskfleet jobs` without a cluster: what is refused before one is asked."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal import Exit


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "submit: no command 'trian'; did you mean train? allowed are train, sweep, segment"),
        (["demo"], "submit: no command 'demo'"),
        (["retry", "retry.statuses=[corrupt]"], "retry: name one run"),
        (["retry", "a", "b"], "retry: name one run"),
        (["train", "--print-config"], "submit: --print-config is for the command itself"),
        (["report", "run", "--seed", "3"], "--seed: report has no such option; did you mean report.seed=...?"),
        (["segment", "output.uri=o"], "usage: maskfleet segment [--config FILE] model.checkpoint=... input.uri=..."),
    ],
)
def test_a_wrong_line_is_refused_as_the_command_itself_would(words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["submit", *words])
    assert result.exit_code == Exit.BAD_INPUT and sentence in result.stderr, result.output


@pytest.mark.parametrize("words", [["list"], ["status", "x"], ["logs", "x", "--follow"], ["stop", "x"]])
def test_an_address_where_nobody_answers_is_bad_input(words: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    result = CliRunner().invoke(app, ["jobs", *words, "--address", address])
    assert result.exit_code == Exit.BAD_INPUT and address in result.stderr, result.output
