"""A Ray of our own: where its workers run, what they import, and that it ends with the block.

Each case runs in a process of its own: a Ray that this session has started would be used as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.start import Nodes
from jobs.home import HOME
from jobs.terminal import Exit
from pipeline.dataset.shapes import draw_shapes
from tests.chaos.runs import finish, start_program
from tests.jobs.drawn_runs import write_run

OWN_RAY = """
import json, os, sys
import ray
from jobs.cluster.start import cluster, joined_nodes, nodes_of
from jobs.config.base import ClusterSection

def total(name):
    return joined_nodes().total(name)

def look():
    import random, pipeline
    return os.getcwd(), sys.path, pipeline.__file__, random.__file__

offered = nodes_of(ClusterSection(num_cpus=3, num_gpus=1))
assert not ray.is_initialized() and [offered.total("CPU"), offered.total("GPU")] == [3, 1]
with cluster(ClusterSection(num_cpus=1, num_gpus=0)):
    seen = dict(zip(("folder", "path", "pipeline", "random"), ray.get(ray.remote(look).remote())))
    seen["totals"] = [total("CPU"), total("GPU")]
    with cluster(ClusterSection(num_cpus=2)):
        seen["inner"] = total("CPU")
    seen["after_inner"] = ray.is_initialized()
seen |= {"after": ray.is_initialized(), "driver": os.getcwd()}
print(json.dumps(seen))
"""
JOIN = """
import json, sys, time
from jobs.cluster.start import cluster
from jobs.config.base import ClusterSection
from jobs.config.load import ConfigError
started = time.monotonic()
try:
    with cluster(ClusterSection(address=ADDRESS)):
        reason = "joined"
except ConfigError as error:
    reason = str(error)
print(json.dumps([reason, time.monotonic() - started]))
"""
FOLDERS = """
import json, os
from pathlib import Path
import ray
from jobs.cluster import start
from jobs.config.base import ClusterSection
folders = []
ray.init = lambda **options: folders.append((os.getcwd(), len(os.listdir())))
ray.shutdown = lambda: None
for installed in (True, False):
    start.is_installed = lambda: installed
    with start.cluster(ClusterSection(num_cpus=1)):
        pass
print(json.dumps([0, *folders, Path(folders[0][0]).exists()]))
"""


def run(program: str, folder: Path) -> Any:
    """What a program prints as JSON, started in a folder with the packages on its path."""
    code = f"import sys; sys.path.insert(0, {str(HOME)!r})\n{program}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "Ray says nothing on stderr"
    return json.loads(done.stdout.splitlines()[-1])


def test_workers_run_beside_our_packages_and_not_in_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the user\\'s random.py was imported')\n")
    seen = run(OWN_RAY, tmp_path)
    assert seen["folder"] not in (str(HOME), str(tmp_path)) and seen["driver"] == str(tmp_path)
    assert str(tmp_path) not in seen["path"] and str(tmp_path) not in seen["random"]
    assert seen["pipeline"] == str(HOME / "pipeline" / "__init__.py")
    assert seen["totals"] == [1, 0]
    assert (seen["inner"], seen["after_inner"], seen["after"]) == (1, True, False), "one that is there is used and left"


def test_ray_starts_from_an_empty_folder_where_we_are_installed_else_from_our_own(tmp_path: Path) -> None:
    _, (empty, num_files), (own, _), is_there = run(FOLDERS, tmp_path)
    assert num_files == 0 and empty not in (str(HOME), str(tmp_path)) and not is_there
    assert own == str(HOME)


def test_this_environment_has_us_installed(tmp_path: Path) -> None:
    program = "import json; from jobs.cluster.start import is_installed; print(json.dumps(is_installed()))"
    assert run(program, tmp_path) is True
    copied = tmp_path / "copy"
    shutil.copytree(HOME / "jobs", copied / "jobs")
    shutil.copytree(HOME / "pipeline", copied / "pipeline")
    assert run(f"import sys; sys.path.insert(0, {str(copied)!r})\n{program}", tmp_path) is False


def join(address: str, folder: Path) -> str:
    """What joining a cluster is refused with, within 30 s; nothing may be written to stderr."""
    reason, took_s = run(f"ADDRESS = {address!r}\n{JOIN}", folder)
    assert took_s < 30
    return reason


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.long
def test_an_address_where_nobody_answers_is_named(listener: socket.socket, tmp_path: Path) -> None:
    port = listener.getsockname()[1]
    allowed = "allowed is a running cluster ('auto', 'host:6379', 'ray://host:10001'), or null to start one here"
    reason = join(f"127.0.0.1:{port}", tmp_path)  # takes connections and says nothing
    assert reason == f"cluster.address: nobody answers at 127.0.0.1:{port} (timed out); {allowed}"
    listener.close()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "no-such-host.invalid:6379"):
        reason = join(address, tmp_path)
        assert reason.startswith(f"cluster.address: nobody answers at {address} (") and allowed in reason
    assert join("head", tmp_path).startswith("cluster.address: head: Invalid address format")


def test_an_address_of_something_else_is_named(listener: socket.socket, tmp_path: Path) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert join(address, tmp_path).startswith(f"cluster.address: what answers at {address} is no Ray cluster; ")


@pytest.mark.long
def test_a_temporary_folder_too_long_for_rays_sockets_is_met_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a-long-name-" * 8)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    before = set(Path("/tmp").glob("mf-*"))
    assert run(OWN_RAY, tmp_path)["totals"] == [1, 0]
    assert set(Path("/tmp").glob("mf-*")) == before


@pytest.mark.long
def test_a_cluster_that_wants_a_token_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without the token of this machine, which Ray would send
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # nor that of a Ray that an earlier test has started
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    port = address.rpartition(":")[2]
    head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"]
    head += [f"--port={port}", "--num-cpus=1", "--num-gpus=0"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as session:
        head.append(f"--temp-dir={session}")
        log = tmp_path / "head.log"
        with log.open("w") as output:
            process = subprocess.Popen(head, env=os.environ | token, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 120
            while "nobody answers" in (reason := join(address, tmp_path)):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            assert "if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in reason
            monkeypatch.setenv("RAY_AUTH_MODE", "token")
            assert "the cluster asks for a token; set RAY_AUTH_TOKEN" in join(address, tmp_path)
            monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 32)
            assert "the cluster refuses the token" in join(address, tmp_path)
            monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
            assert join(address, tmp_path) == "joined"
        finally:
            process.terminate()
            process.wait(60)


def test_workers_fit_where_one_node_has_room_for_all_that_one_reserves() -> None:
    nodes = Nodes(({"CPU": 2, "GPU": 1}, {"CPU": 3}, {"memory": 1}))
    wanted = ((1, 0), (2, 0), (4, 0), (1, 1), (3, 1), (0.5, 0.5), (0, 1))
    assert [nodes.room(cpus, gpus) for cpus, gpus in wanted] == [5, 2, 0, 1, 0, 2, 1]
    assert (nodes.total("CPU"), nodes.total("GPU")) == (5, 1)


@pytest.mark.long
def test_a_dry_run_looks_at_its_cluster(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    draw_shapes(str(tmp_path), num_train=2, num_val=2, num_unlabelled=1)
    write_run(tmp_path, tmp_path / "run", drop_every=0)
    (tmp_path / "base.yaml").write_text(
        "model: {spec: {norm: group}}\ntrain: {max_steps: 2, validate_every_steps: 2}\n"
    )
    data, nobody = [f"data.train={tmp_path}/train.json"], "cluster.address=127.0.0.1:1"
    out, gpus = f"output.uri={tmp_path / 'out'}", "cluster.num_gpus=0"
    train = ["train", *data, "model.spec.norm=group", "train.max_steps=2", out]
    segment = ["segment", f"model.checkpoint={tiny_checkpoint}", f"input.uri={photos}", out]
    sets = f'sweep.fixed={{"data.train": "{tmp_path}/train.json", "data.val": "{tmp_path}/val.json"}}'
    sweep = ["sweep", f"sweep.base={tmp_path / 'base.yaml'}", sets, out]
    evaluate = ["evaluate", str(tmp_path / "run"), f"ground_truth.uri={tmp_path}/val.json", out]
    lines = {
        "nobody answers at 127.0.0.1:1": [
            [*train, nobody],
            [*segment, nobody],
            [*sweep, nobody],
            [*evaluate, "evaluate.num_shares=2", nobody],
        ],
        "segment.gpus_per_worker: 1 is not allowed: the cluster has 0 GPUs": [
            [*segment, gpus, "segment.gpus_per_worker=1"]
        ],
        "train.num_workers: 1 needs 1 GPUs, the cluster has 0": [[*train, gpus, "train.use_gpu=true"]],
        "train.num_workers: 9 needs 9 CPUs, the cluster has 2": [[*train, "cluster.num_cpus=2", "train.num_workers=9"]],
    }
    started = [(reason, start_program(*words, "--dry-run")) for reason, group in lines.items() for words in group]
    for reason, process in started:
        last = finish(process, Exit.BAD_INPUT).splitlines()[-1]
        assert last.startswith("maskfleet: ") and reason in last
    assert not (tmp_path / "out").exists()
