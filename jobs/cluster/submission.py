"""The submission file of a job: the command's words, and the environment that the job is handed.

A job's package holds `submission.json` beside the code. Neither words nor environment pass through the job's entrypoint,
its metadata or its runtime environment, all of which Ray logs and shows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from jobs.home import HOME

SUBMISSION = "submission.json"
PYTHON = "MASKFLEET_PYTHON"


def read_submission(folder: Path) -> dict[str, Any]:
    """The submission of an unpacked package: `args` (list of words) and `environment` (name -> value)."""
    return json.loads((folder / SUBMISSION).read_text())


def setup_worker() -> None:
    """Gives a process of the job the environment that the job was handed. Ray calls it at each worker's start."""
    # The driver runs on the Python of Ray's own workers, whatever `python` is on that machine.
    os.environ[PYTHON] = sys.executable
    if (HOME / SUBMISSION).is_file():
        os.environ.update(read_submission(HOME)["environment"])
