"""Nodes that are lost in the middle of a run, on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.clusters import one_core_nodes
from tests.chaos.runs import check_exact, commits_of, finish, kill_everything, start, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    with one_core_nodes(3) as cluster:
        yield cluster


@pytest.mark.parametrize("lost", [1, 2], ids=["one node", "two nodes at once"])
def test_a_lost_node_costs_only_its_uncommitted_shards(
    lost: int, nodes: Cluster, tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [f"cluster.address={nodes.address}", "segment.num_workers=[1, 3]"]
    program = start(tiny_checkpoint, photos, out, *words)
    try:
        assert wait_until(lambda: len(commits_of(out)) >= 3, program)
        survived = {path: path.read_bytes() for path in commits_of(out)}
        for node in list(nodes.worker_nodes)[:lost]:
            nodes.remove_node(node, allow_graceful=False)
        assert len(commits_of(out)) < 15, "the nodes were removed when no shard was left to segment"
        nodes.add_node(num_cpus=1)
        finish(program)
    finally:
        kill_everything(program)
    assert {path: path.read_bytes() for path in survived} == survived
    check_exact(out, undisturbed)
