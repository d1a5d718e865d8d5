"""The submission file gives every process of a job its environment, and only of that job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jobs.cluster.job_package import Submission, write_package
from jobs.cluster.submission import PYTHON, SUBMISSION, read_submission
from tests.paths import ROOT

PROGRAM = """
import json, os
from jobs.cluster.submission import setup_worker
setup_worker()
print(json.dumps(dict(os.environ)))
"""


def environment_of_a_worker(folder: Path) -> dict[str, str]:
    """The environment of a process that runs the code in `folder`, after the hook that Ray calls at its start."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env={"NAME": "old"}, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_a_worker_of_the_job_has_the_environment_that_was_handed_over(tmp_path: Path) -> None:
    submission = Submission(
        "retry", ("retry", "s3://b/run"), None, {"NAME": "new", "AWS_SECRET_ACCESS_KEY": 's = "x"\n'}
    )
    write_package(tmp_path, submission)
    assert read_submission(tmp_path) == {"args": ["retry", "s3://b/run"], "environment": submission.environment}
    environment = environment_of_a_worker(tmp_path)
    assert environment["NAME"] == "new" and environment["AWS_SECRET_ACCESS_KEY"] == 's = "x"\n'
    assert environment[PYTHON] == sys.executable


def test_a_process_outside_a_job_keeps_its_own_environment() -> None:
    assert not (ROOT / SUBMISSION).exists()
    environment = environment_of_a_worker(ROOT)
    assert environment["NAME"] == "old" and environment[PYTHON] == sys.executable
