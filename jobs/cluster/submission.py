"""Submission file of a job: the words of its command and its environment variables, for the processes of the job.

A job's package holds the file, `submission.json`, beside the code. Words and variables do not go through the job's
entrypoint, metadata or runtime environment, because Ray logs and shows these.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TypedDict

from jobs.home import HOME

SUBMISSION = "submission.json"
PYTHON = "MASKFLEET_PYTHON"


class Submitted(TypedDict):
    """The words of a job's command, and its environment variables."""

    args: list[str]
    environment: dict[str, str]


def read_submission(folder: Path) -> Submitted:
    """Reads the submission file of an unpacked package."""
    return json.loads((folder / SUBMISSION).read_text())


def setup_worker() -> None:
    """Sets the environment variables of the job's submission in this process. Ray calls it at each worker's start."""
    # The job's entrypoint then runs with the Python of Ray's workers, whichever `python` comes first on the PATH.
    os.environ[PYTHON] = sys.executable
    if (HOME / SUBMISSION).is_file():
        os.environ.update(read_submission(HOME)["environment"])
