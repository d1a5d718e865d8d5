"""The one place where Ray is started or joined."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from jobs.config.base import ClusterSection
from jobs.home import HOME

START_TRIES = 3


@contextmanager
def cluster(section: ClusterSection) -> Iterator[None]:
    """Joins the cluster of `cluster.address`, or starts one on this machine and ends it afterwards.

    A Ray that this process has initialised already is used as it is and left running.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside anything else
    # Ray's C++ core warns on stderr of things that are no fault (restartable actors with large arguments).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU keep CUDA's own view
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with tempfile.TemporaryDirectory(prefix="maskfleet-") as empty:
        # Ray puts the folder it is started from at the front of every worker's import path, and its workers run there.
        # In the user's folder a `model.py` or a `random.py` would take the place of ours or of Python's own.
        # So it is an empty one; our own only where a Python of this environment would not find our packages by itself.
        _start(section, Path(empty) if is_installed() else HOME)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()


def is_installed() -> bool:
    """Whether a fresh Python of this environment imports the packages of this very program, wherever it is started.

    False also where that Python does not answer within a minute: starting from our own folder works in any case.
    """
    program = "from importlib.util import find_spec; print(find_spec('maskfleet').origin)"
    try:
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and Path(done.stdout.strip()).resolve() == HOME / "maskfleet" / "__init__.py"


def _start(section: ClusterSection, folder: Path) -> None:
    """Joins or starts, from a folder; on a machine so busy that Ray's own 30 s for a start run out, tries again."""
    local = section.address is None
    for tries_left in reversed(range(START_TRIES)):
        try:
            with contextlib.chdir(folder):
                ray.init(
                    address="local" if local else section.address,
                    num_cpus=section.num_cpus if local else None,
                    num_gpus=section.num_gpus if local else None,
                    include_dashboard=False if local else None,
                    configure_logging=True,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        except Exception as error:  # Ray raises a bare Exception here
            if not tries_left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def total(resource: str) -> int:
    """How much of a resource ('CPU', 'GPU') the cluster has in all."""
    return int(ray.cluster_resources().get(resource, 0))
