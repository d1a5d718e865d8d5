"""Ray clusters of several nodes on one machine, for the fault suites."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.paths import ROOT


@contextlib.contextmanager
def one_core_nodes(count: int) -> Iterator[Cluster]:
    """A cluster with `count` nodes of one core each and a head without cores; workers can import the tests' modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


SICK = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Deadly(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)

if any("default_worker" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Deadly())
"""


def add_sick_node(cluster: Cluster, folder: Path, deadly: str) -> None:
    """Adds a node of one core whose worker processes die as they import the module `deadly`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"DEADLY = {deadly!r}\n{SICK}")
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})
