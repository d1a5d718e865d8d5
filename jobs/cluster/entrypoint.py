"""What runs inside a submitted job: `python -m jobs.cluster.entrypoint COMMAND`, and the first step of each of its workers.

A job's package holds `submission.json`: the command's arguments, and the environment that it is handed. Neither passes
through the job's entrypoint, its metadata or its runtime environment, all of which Ray logs and shows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SUBMISSION = "submission.json"
PYTHON = "MASKFLEET_PYTHON"


def read_submission(folder: Path) -> dict[str, Any]:
    """The submission of an unpacked package: `args` (list of words) and `environment` (name -> value)."""
    return json.loads((folder / SUBMISSION).read_text())


def setup_worker() -> None:
    """Gives a process of the job the environment that the job was handed. Ray calls it at each worker's start."""
    folder = Path(__file__).resolve().parents[2]
    # The driver runs on the Python of Ray's own workers, whatever `python` is on that machine.
    os.environ[PYTHON] = sys.executable
    if (folder / SUBMISSION).is_file():
        os.environ.update(read_submission(folder)["environment"])


def main() -> None:
    """Runs the submitted command; its exit code is the job's."""
    folder = Path(__file__).resolve().parents[2]
    setup_worker()
    os.chdir(folder)
    sys.argv = ["maskfleet", *read_submission(folder)["args"]]
    from jobs.cli import main as run

    run()


if __name__ == "__main__":
    main()
