"""The program of a job runs the command of its submission file, with the environment it was handed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster.job_package import Submission, write_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked package whose command prints a configuration."""
    words = ("train", "data.train=/data/set.json", "train.max_steps=3", "output.uri=/models/a", "--print-config")
    write_package(tmp_path, Submission("train", words, None, {"MASKFLEET_TEST": "handed over"}))
    return tmp_path


def run(package: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cluster.entrypoint", "train"]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True, text=True, timeout=120
    )


def test_it_runs_the_submitted_words_with_the_code_of_the_package(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done = run(package, tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    assert "uri: /models/a" in done.stdout and "max_steps: 3" in done.stdout


def test_its_exit_code_is_the_commands(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    submission = json.loads((package / "submission.json").read_text())
    submission["args"][2] = "train.max_steps=-3"
    (package / "submission.json").write_text(json.dumps(submission))
    done = run(package, tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 2 and "train.max_steps" in done.stderr


def test_the_command_has_the_environment_that_was_handed_over(package: Path) -> None:
    (package / "jobs" / "cli.py").write_text(
        "import os\ndef main():\n    print(os.environ['MASKFLEET_TEST'], os.getcwd())\n"
    )
    done = run(package, package)
    assert done.stdout.split() == ["handed", "over", str(package)]
