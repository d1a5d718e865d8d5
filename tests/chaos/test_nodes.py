"""Nodes of a real Ray cluster that are lost in the middle of a run, and nodes whose workers never start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.clusters import add_sick_node, one_core_nodes
from tests.chaos.runs import check_exact, commits_of, finish, kill_everything, start, wait_until, words_of
from tests.paths import ROOT

LESS_PATIENT = """
import os, sys
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # as the program does, before Ray is imported
from jobs.cli import main
from pipeline.bulk import pool
pool.SILENT_S, pool.PROBE_S = 8, 30
main()
"""


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    with one_core_nodes(3) as cluster:
        yield cluster


@pytest.mark.slow
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


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("deadly", "reason"),
    [
        ("ray", "no worker process has started within 30 s"),
        ("pipeline.bulk.worker", "worker processes die as they start: they are killed, crash or run out of memory"),
    ],
)
def test_workers_that_die_before_they_can_say_so_end_the_run(
    deadly: str, reason: str, tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with one_core_nodes(0) as cluster:
        add_sick_node(cluster, tmp_path / "sick", deadly)
        words = words_of(tiny_checkpoint, photos, tmp_path / "run", f"cluster.address={cluster.address}")
        program = [sys.executable, "-c", LESS_PATIENT, "segment", *words]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stdout + done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("maskfleet: no worker reports, and on the node ")
        assert last.endswith(f" {reason}. The run has stopped; the same command goes on with it")
        cluster.add_node(num_cpus=1)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        finish(start(tiny_checkpoint, photos, tmp_path / "run", f"cluster.address={cluster.address}"))
    check_exact(tmp_path / "run", undisturbed)
