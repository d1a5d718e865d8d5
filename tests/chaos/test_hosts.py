"""Three hosts, a head with the bucket and two workers: a training, and a bulk run that loses one worker's host."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from tests.chaos.hosts import Hosts, NoHosts
from tests.chaos.rgw import Rgw
from tests.chaos.s3 import environment_for
from tests.debian import Unavailable
from tests.paths import ROOT

pytestmark = pytest.mark.cluster

HEAD, FIRST, SECOND = 0, 1, 2
NUM_PHOTOS = 200
START_TRIES = 3
# Runs on the head's host, where the bucket can be reached: copies a folder into a new bucket.
UPLOAD = """
import sys; from pathlib import Path
from pipeline.storage.stores import open_storage; from tests.chaos.s3 import make_bucket
bucket = f"s3://{make_bucket(sys.argv[1])}"
for path in Path(sys.argv[2]).rglob("*"):
    if path.is_file(): open_storage(bucket).write_bytes(path.relative_to(sys.argv[2]).as_posix(), path.read_bytes())
print(bucket)
"""
NUM_COMMITS = """
import sys; from pipeline.storage.stores import open_storage
print(sum(1 for _ in open_storage(sys.argv[1]).iter_objects("commits/")))
"""
CHECK_EXACT = "import sys; from tests.chaos.runs import check_exact; check_exact(sys.argv[1], sys.argv[2])"


@dataclass
class Lab:
    """The running hosts; `submit` and `python` run programs on the head's."""

    hosts: Hosts
    environment: dict[str, str]
    address: str
    bucket: str = ""

    def submit(self, *words: str, code: int | None = 0) -> str:
        line = [sys.executable, "-m", "maskfleet", "submit", *words, "--address", self.address]
        return self.hosts.run(HEAD, line, self.environment, code)

    def log(self, job_id: str) -> str:
        return self.python(f"from jobs.cluster.submit import Jobs; print(Jobs({self.address!r}).log({job_id!r}))")

    def python(self, code: str, *words: str) -> str:
        return self.hosts.run(HEAD, [sys.executable, "-c", code, *words], self.environment).strip()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    ray_folder = Path(tempfile.mkdtemp(prefix="mf"))  # short: Ray's sockets lie in it
    try:
        with Hosts(3) as hosts, Rgw(tmp_path / "rgw", hosts.addresses[HEAD], hosts.prefix(HEAD)) as rgw:
            yield start_lab(hosts, rgw, tmp_path, ray_folder)
    except (NoHosts, Unavailable) as reason:
        pytest.skip(f"no network namespaces or no gateway here: {reason}")
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def start_lab(hosts: Hosts, rgw: Rgw, folder: Path, ray_folder: Path) -> Lab:
    """Ray on every host, with a token; the workers have one core each."""
    environment = {
        **environment_for(rgw.endpoint),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",  # a host's name resolves to the machine's own address
    }
    ray, head = str(Path(sys.executable).parent / "ray"), hosts.addresses[HEAD]
    common = ["--block", "--disable-usage-stats"]

    def start(number: int, *words: str) -> None:
        own = [ray, "start", *words, f"--node-ip-address={hosts.addresses[number]}", *common]
        cache, log = {"XDG_CACHE_HOME": str(folder / f"cache{number}")}, folder / f"ray{number}.log"
        for _ in range(START_TRIES):  # on a busy machine a start may take longer than the 30 s that Ray allows
            program = hosts.start(number, own, log, **environment, **cache)
            if came_up(program, log):
                return
        raise AssertionError(log.read_text()[-2000:])

    # A folder of its own: in Ray's default one, another Ray of this machine may be taken for the current one.
    start(HEAD, "--head", "--port=6379", f"--dashboard-host={head}", "--num-cpus=0", f"--temp-dir={ray_folder}")
    lab = Lab(hosts, environment, f"http://{head}:8265")
    count_jobs = f"from jobs.cluster.submit import Jobs; print(len(Jobs({lab.address!r}).list()), 'jobs')"
    program = [sys.executable, "-c", count_jobs]
    wait_for(lambda: "0 jobs" in hosts.run(HEAD, program, environment, None), 120)
    for number in (FIRST, SECOND):
        start(number, f"--address={head}:6379", "--num-cpus=1")
    return lab


def came_up(ray: subprocess.Popen[bytes], log: Path) -> bool:
    """Waits until a `ray start --block` has started, or has given up."""
    wait_for(lambda: ray.poll() is not None or "will now block forever" in log.read_text(), 180)
    return ray.poll() is None


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "nothing happened for too long"
        time.sleep(0.5)


def test_training_on_two_hosts_and_a_bulk_run_that_loses_one(lab: Lab, tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "drawn"), num_train=8, num_val=0, num_unlabelled=NUM_PHOTOS, image_size=(64, 96))
    bucket = lab.python(UPLOAD, lab.environment["AWS_ENDPOINT_URL"], str(tmp_path / "drawn"))
    words = ["--config", str(ROOT / "configs/train/tiny_cpu.yaml"), f"data.train={bucket}/train.json"]
    words += [f"output.uri={bucket}/model", "train.num_workers=2", "train.max_steps=2", "train.warmup_steps=1"]
    trained = lab.submit("train", *words, "train.data_workers=0", "train.tensorboard=false")
    assert "on 2 CPU workers" in trained and "trained: 2 steps" in trained

    segment = ["segment", f"model.checkpoint={bucket}/model", f"input.uri={bucket}/unlabelled", "corpus.shard_size=2"]
    segment += ["segment.cpus_per_worker=1", "segment.num_workers=[1, 2]", "segment.decode_children=1"]
    output = lab.submit(*segment, f"output.uri={bucket}/run", "--detach")
    job = next(line for line in output.splitlines() if line.startswith("job "))
    wait_for(lambda: "2 workers" in lab.log(job.split()[1]), 600)  # both hosts are at work
    lab.hosts.take_away(SECOND)
    assert int(lab.python(NUM_COMMITS, f"{bucket}/run")) < NUM_PHOTOS // 2, "nothing was left to lose"
    done = lab.submit(*segment, f"output.uri={bucket}/run")  # the same job, or a new one if it failed
    assert "is running already" in done and f"{NUM_PHOTOS} images" in done
    undisturbed = lab.submit(*segment, f"output.uri={bucket}/undisturbed")
    assert f"{NUM_PHOTOS} images" in undisturbed
    lab.python(CHECK_EXACT, f"{bucket}/run", f"{bucket}/undisturbed")
