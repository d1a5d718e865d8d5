"""Ray clusters of several nodes on one machine, for the fault suites."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
