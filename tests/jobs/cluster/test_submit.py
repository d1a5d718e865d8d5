"""Submitted jobs: on a real Ray cluster whose Jobs API asks for a token, and what needs no cluster."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from aiohttp import web
from ray.job_submission import JobSubmissionClient
from typer.testing import CliRunner

from jobs.cli import app
from jobs.cluster import job_package, submit
from jobs.cluster.submission import SUBMISSION
from jobs.config.load import ConfigError
from model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.bulk.verify import verify_run
from pipeline.dataset.shapes import SHAPE_CATEGORIES, draw_shapes
from pipeline.manifest import open_run
from pipeline.storage.base import Secret, StorageSettings
from pipeline.storage.stores import open_storage
from tests.chaos.rgw import ACCESS_KEY, free_port
from tests.chaos.s3 import make_bucket
from tests.paths import ROOT

PLANTED = "planted-7f3a9c51-secret"


@dataclass(frozen=True)
class Head:
    """A running cluster: the address of its dashboard, its token, and the folder that holds all of its files."""

    address: str
    token: str
    folder: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node of two cores, started by `ray start --head`."""
    folder = Path(tempfile.mkdtemp(prefix="mf"))  # short: Ray's sockets lie in it
    token, port = secrets.token_hex(32), free_port()
    ports = {
        "port": free_port(),
        "dashboard-port": port,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--disable-usage-stats", *(f"--{name}={value}" for name, value in ports.items())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "XDG_CACHE_HOME": str(folder / "cache")}
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, preexec_fn=_die_with_parent
        )
    try:
        give_up = time.monotonic() + 180
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < give_up, (folder / "head.log").read_text()[-2000:]
            time.sleep(0.2)
        yield Head(f"http://127.0.0.1:{port}", token, folder)
    finally:
        process.send_signal(signal.SIGTERM)  # `ray start --block` ends its own processes
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def maskfleet(head: Head, *words: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the program against the cluster, whose address and token it gets from the environment."""
    variables = os.environ | {"RAY_API_SERVER_ADDRESS": head.address, "RAY_AUTH_TOKEN": head.token} | environment
    done = subprocess.run(
        [sys.executable, "-m", "maskfleet", *words],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def wait_until(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "the condition was not met in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_shapes(str(folder), num_train=12, num_val=6, num_unlabelled=0)
    return folder


def train_words(drawn: Path, out: Path | str, *more: str) -> list[str]:
    words = ["--config", str(ROOT / "configs/train/tiny_cpu.yaml"), f"data.train={drawn / 'train.json'}"]
    words += [f"output.uri={out}", "train.data_workers=0", "train.warmup_steps=1", "train.tensorboard=false"]
    return [*words, *more]


@pytest.mark.cluster
def test_train_segment_and_evaluate_run_as_jobs_and_the_same_submission_again_is_the_same_job(
    head: Head, drawn: Path, tmp_path: Path
) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    trained = maskfleet(head, "submit", "train", *train_words(drawn, model, "train.max_steps=2"))
    assert "trained: 2 steps" in trained.stdout
    segment = ["submit", "segment", f"model.checkpoint={model}", f"input.uri={drawn / 'val'}", f"output.uri={run}"]
    segment += ["segment.cpus_per_worker=1"]
    first = maskfleet(head, *segment)
    assert f"input.uri={drawn / 'val'} is a path" in first.stdout
    assert "6 images" in first.stdout and "succeeded" in first.stdout.splitlines()[-1]
    job_id = first.stdout.splitlines()[-1].split()[1]
    assert list(verify_run(open_run(str(run)))) == []

    assert f"job {job_id} has succeeded already" in maskfleet(head, *segment).stdout
    listed = maskfleet(head, "jobs", "list").stdout
    assert listed.count(job_id) == 1 and listed.count("segment-") == 1
    assert "6 images" in maskfleet(head, "jobs", "logs", job_id).stdout

    evaluate = ["submit", "evaluate", str(run), f"ground_truth.uri={drawn / 'val.json'}"]
    assert "figures -> " in maskfleet(head, *evaluate).stdout
    gated = maskfleet(head, *evaluate, "gate.min_ap=0.99", code=4)
    assert "exit code 4: gate failed: " in gated.stderr.splitlines()[-1]


@pytest.mark.cluster
def test_a_failing_job_gives_its_exit_code_and_its_reason_on_the_last_line(head: Head, tmp_path: Path) -> None:
    words = ["submit", "segment", "model.checkpoint=/no/model", "input.uri=/no/photos", f"output.uri={tmp_path / 'o'}"]
    failed = maskfleet(head, *words, code=2)
    last = failed.stderr.splitlines()[-1]
    assert "exit code 2: input.uri: '/no/photos' is not a folder" in last
    job_id = last.split()[2]
    assert job_id.endswith("-1")
    status = maskfleet(head, "jobs", "status", job_id).stdout
    assert "FAILED (exit code 2)" in status and "reason: input.uri: '/no/photos'" in status
    assert f"{job_id[:-2]}-2" in maskfleet(head, *words, code=2).stderr  # a failed one is tried again
    assert maskfleet(head, "jobs", "status", "no-such-job", code=1).stderr.endswith("job no-such-job does not exist\n")


@pytest.mark.cluster
def test_a_stopped_training_goes_on_when_it_is_submitted_again(head: Head, drawn: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    words = ["submit", "train", *train_words(drawn, model, "train.max_steps=150", "train.log_every_steps=1")]
    words.append("train.checkpoint_every_steps=150")
    detached = maskfleet(head, *words, "--detach").stdout
    job_id = next(line for line in detached.splitlines() if line.startswith("job ")).split()[1]
    wait_until(lambda: "train: step " in maskfleet(head, "jobs", "logs", job_id).stdout)
    assert f"job {job_id} is running already" in maskfleet(head, *words, "--detach").stdout
    assert "STOPPED" in maskfleet(head, "jobs", "stop", job_id).stdout
    (checkpoint,) = model.glob("checkpoints/*/checkpoint.json")
    assert checkpoint.parent.name < "step-00000150", "it was written before the end, as the training was stopped"
    again = maskfleet(head, *words)
    assert f"job {job_id[:-2]}-2 succeeded" in again.stdout
    assert "of which" in again.stdout and "trained: 150 steps" in again.stdout


@pytest.mark.cluster
def test_a_cluster_with_a_token_refuses_requests_without_it(head: Head, tmp_path: Path) -> None:
    without = maskfleet(head, "jobs", "list", code=2, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert "the cluster asks for a token" in without.stderr and str(tmp_path / ".ray/auth_token") in without.stderr
    wrong = maskfleet(head, "jobs", "list", code=2, RAY_AUTH_TOKEN="wrong" * 8)
    assert "refuses the token" in wrong.stderr
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(head.token)
    maskfleet(head, "jobs", "list", RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    nobody = maskfleet(head, "jobs", "list", "--address", f"http://127.0.0.1:{free_port()}", code=2)
    assert "nobody answers there" in nobody.stderr


@pytest.mark.cluster
def test_nothing_but_the_package_holds_a_secret(
    head: Head, drawn: Path, moto: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Jobs read and write a bucket with a planted key, which is then looked for in everything that was written."""
    bucket = make_bucket(moto)
    store = [f"storage.endpoint_url={moto}", "storage.region=us-east-1"]
    store += [f"storage.access_key={ACCESS_KEY}", f"storage.secret_key={PLANTED}"]
    checkpoint = load_checkpoint(tiny_checkpoint)
    model = tmp_path / "model"  # the same network under the class map of the drawn truth, against which it is evaluated
    save_checkpoint(model, model=checkpoint.build(), spec=checkpoint.spec, categories=SHAPE_CATEGORIES, progress={})
    segment = [f"model.checkpoint={model}", f"input.uri={drawn / 'val'}", f"output.uri=s3://{bucket}/run"]
    page = tmp_path / "report.html"
    seen = ""
    for words in (
        ["train", *train_words(drawn, f"s3://{bucket}/model", "train.max_steps=2")],
        ["segment", *segment, "segment.cpus_per_worker=1"],
        [
            "evaluate",
            f"s3://{bucket}/run",
            f"ground_truth.uri={drawn / 'val.json'}",
            f"history.uri=s3://{bucket}/history",
        ],
    ):
        done = maskfleet(head, "submit", *words, *store, "--env", "PLANTED_TOKEN", PLANTED_TOKEN=PLANTED)
        assert "AWS_SECRET_ACCESS_KEY, PLANTED_TOKEN" in done.stdout
        seen += done.stdout + done.stderr
    report = maskfleet(head, "report", f"s3://{bucket}/run", f"output.uri={page}", *store)
    seen += maskfleet(head, "jobs", "list").stdout + report.stdout + report.stderr + page.read_text()
    client = JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {head.token}"})
    seen += repr([vars(job) for job in client.list_jobs()])
    assert "6 images" in seen and PLANTED not in seen
    settings = StorageSettings(
        endpoint_url=moto, access_key=Secret(ACCESS_KEY), secret_key=Secret(PLANTED), region="us-east-1"
    )
    written = open_storage(f"s3://{bucket}", settings)
    keys = [info.key for info in written.iter_objects()]
    assert any(key.startswith("run/instances/") for key in keys) and "run/run.json" in keys
    assert any(key.startswith("model/checkpoints/") for key in keys) and any(key.startswith("history/") for key in keys)
    assert [key for key in keys if PLANTED.encode() in written.read_bytes(key)] == []
    files = [path for path in head.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    with_secret = [path for path in files if PLANTED.encode() in path.read_bytes()]
    assert {path.name for path in with_secret} <= {SUBMISSION}, "only the package holds it"
    assert {path.stat().st_mode & 0o077 for path in with_secret} == {0}, "only its owner reads it"


# -- without a cluster


def test_a_switch_of_the_command_is_submitted_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[job_package.Submission] = []

    class Cluster:
        address = "http://127.0.0.1:1"

        def __init__(self, address: str | None) -> None: ...
        def warning(self) -> None: ...
        def submit(self, submission: job_package.Submission, **options: object) -> tuple[submit.JobState, bool]:
            sent.append(submission)
            return submit.JobState("segment-x-1", "RUNNING", None, "", None, None, {}), True

    monkeypatch.setattr(submit, "Jobs", Cluster)
    words = ["submit", "segment", "--detach", "model.checkpoint=m", "input.uri=i", "output.uri=s3://b/o"]
    for switch in ([], ["--profile"]):
        result = CliRunner().invoke(app, [*words, *switch])
        assert result.exit_code == 0, result.output
    assert [submission.args[3:] for submission in sent] == [(), ("--profile",)]
    assert sent[0].hash() != sent[1].hash()


@pytest.mark.parametrize("words", [["submit", "demo"], ["submit", "segment", "--dry-run"], ["submit", "retry"]])
def test_what_cannot_be_submitted_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and result.stderr.startswith("maskfleet: ")


def has_address_in_a_network() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return False
        return not probe.getsockname()[0].startswith("127.")


def test_a_cluster_that_others_reach_without_a_token_gives_a_warning() -> None:
    def jobs(address: str, has_token: bool = False) -> submit.Jobs:
        client = submit.Jobs.__new__(submit.Jobs)  # without connecting
        client.address, client.has_token = address, has_token
        return client

    assert "without a token" in (jobs("http://192.0.2.7:8265").warning() or "")
    assert jobs("http://192.0.2.7:8265", has_token=True).warning() is None
    for host, is_warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            if is_warned and not has_address_in_a_network():
                pytest.skip("this machine has no address but loopback")
            assert (jobs(f"http://127.0.0.1:{port}").warning() is not None) == is_warned


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://user:pass@head:8265"])
def test_addresses_other_than_a_dashboards_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="such as http://head:8265"):
        submit.Jobs(address)


def test_the_reason_of_a_failed_job_is_the_programs_last_message() -> None:
    def state(status: str, message: str = "") -> submit.JobState:
        return submit.JobState("train-x-1", status, 2, message, None, None, {})

    log = "maskfleet: note\nstep 3\nmaskfleet: data.train: no such file\nTraceback\n"
    assert submit.reason_of(state("FAILED", "exit code 2"), log) == "data.train: no such file"
    assert submit.reason_of(state("FAILED", "worker\n  died"), "step 3\n") == "worker died"
    assert submit.reason_of(state("FAILED"), "") == "no reason is known"
    assert "submit it again" in submit.reason_of(state("STOPPED"), log)


def test_the_token_is_looked_for_where_ray_itself_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"asks for a token; set RAY_AUTH_TOKEN, or write it to .*/\.ray/auth_token"):
        submit.find_token("http://head:8265")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of the home folder\n")
    assert submit.find_token("http://head:8265") == "of the home folder"
    (tmp_path / "token").write_text("of the named file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert submit.find_token("http://head:8265") == "of the named file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " of the environment ")
    assert submit.find_token("http://head:8265") == "of the environment"


LOG = ["step 1\n", "step 2\n", "step 3\n"]


class FlakyDashboard:
    """A dashboard with one job, whose first connections for the log break: before, at and within it."""

    def __init__(self) -> None:
        self.num_tails = 0
        self.port = free_port()

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.num_tails += 1
        if self.num_tails == 1:
            raise web.HTTPBadGateway
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in ["step 1\nst", "ep 2\n"] if self.num_tails == 2 else LOG:
            await socket.send_str(text)
        if self.num_tails == 2:
            await asyncio.sleep(0.2)
            assert request.transport is not None
            request.transport.close()
        return socket

    async def job(self, request: web.Request) -> web.Response:
        status = "SUCCEEDED" if self.num_tails > 2 else "RUNNING"
        job = {
            "type": "SUBMISSION",
            "submission_id": "train-x-1",
            "status": status,
            "entrypoint": "",
            "driver_exit_code": 0,
        }
        return web.json_response(job)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"ray_version": ray.__version__})

    async def jobs(self, request: web.Request) -> web.Response:
        return web.json_response([])

    def serve(self, stop: threading.Event, is_up: threading.Event) -> None:
        async def run() -> None:
            app = web.Application()
            app.router.add_get("/api/version", self.version)
            app.router.add_get("/api/jobs/", self.jobs)
            app.router.add_get("/api/jobs/train-x-1", self.job)
            app.router.add_get("/api/jobs/train-x-1/logs/tail", self.tail)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            is_up.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)
            await runner.cleanup()

        asyncio.run(run())


def test_a_log_whose_connection_breaks_is_shown_whole_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOST_TRIES", 1)  # in a row; the second failure comes after new text
    dashboard, stop, is_up = FlakyDashboard(), threading.Event(), threading.Event()
    thread = threading.Thread(target=dashboard.serve, args=(stop, is_up))
    thread.start()
    try:
        assert is_up.wait(30)
        written: list[str] = []
        state = submit.Jobs(f"http://127.0.0.1:{dashboard.port}").follow("train-x-1", written.append)
    finally:
        stop.set()
        thread.join()
    assert state.status == "SUCCEEDED" and dashboard.num_tails == 3
    assert "".join(written) == "".join(LOG)


def test_the_variable_of_the_setup_hook_is_rays_own() -> None:
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR  # it has no public name

    assert submit.HOOK_VARIABLE == WORKER_PROCESS_SETUP_HOOK_ENV_VAR
