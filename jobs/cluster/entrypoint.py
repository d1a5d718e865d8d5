"""Program of a submitted job: `python -m jobs.cluster.entrypoint COMMAND` runs what its submission file says."""

from __future__ import annotations

import os
import sys

from jobs.cli import main as run_command
from jobs.cluster.submission import read_submission, setup_worker
from jobs.home import HOME


def main() -> None:
    """Runs the submitted command; its exit code is the job's."""
    setup_worker()
    os.chdir(HOME)
    sys.argv = ["maskfleet", *read_submission(HOME)["args"]]
    run_command()


if __name__ == "__main__":
    main()
