"""Commands as jobs of a real Ray cluster of its own, whose Jobs API asks for a token."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.cluster import job_package, submit
from jobs.cluster.job_package import from_settings, from_words, handed_environment, write_package
from jobs.cluster.submission import SUBMISSION, read_submission
from jobs.commands import COMMANDS, read_settings
from jobs.config.load import ConfigError
from pipeline.bulk.verify import verify_run
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import open_run
from tests.chaos.rgw import ACCESS_KEY, free_port
from tests.chaos.s3 import make_bucket
from tests.paths import ROOT

PLANTED = "planted-7f3a9c51-secret"


@dataclass(frozen=True)
class Head:
    """A running cluster: where it answers, its token, and the folder that everything it writes lies in."""

    address: str
    token: str
    folder: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of two cores, started as people start one."""
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
    """The program against the cluster; the address comes from the environment."""
    given = os.environ | {"RAY_API_SERVER_ADDRESS": head.address, "RAY_AUTH_TOKEN": head.token} | environment
    done = subprocess.run(
        [sys.executable, "-m", "maskfleet", *words], cwd=ROOT, env=given, capture_output=True, text=True, timeout=600
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def wait_until(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "nothing happened for too long"
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
def test_train_segment_evaluate_each_as_a_job_and_the_same_again_is_the_same_job(
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
    words = ["submit", "train", *train_words(drawn, model, "train.max_steps=60", "train.checkpoint_every_steps=5")]
    detached = maskfleet(head, *words, "--detach").stdout
    job_id = next(line for line in detached.splitlines() if line.startswith("job ")).split()[1]
    wait_until(lambda: len(list(model.glob("checkpoints/*/checkpoint.json"))) >= 1)
    assert f"job {job_id} is running already" in maskfleet(head, *words, "--detach").stdout
    assert "STOPPED" in maskfleet(head, "jobs", "stop", job_id).stdout
    done = len(list(model.glob("checkpoints/*/checkpoint.json")))
    assert done < 12, "it ended before it was stopped"
    again = maskfleet(head, *words)
    assert f"job {job_id[:-2]}-2 succeeded" in again.stdout
    assert "of which" in again.stdout and "trained: 60 steps" in again.stdout


@pytest.mark.cluster
def test_a_cluster_with_a_token_is_closed_to_who_has_none(head: Head, tmp_path: Path) -> None:
    none = maskfleet(head, "jobs", "list", code=2, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert "the cluster asks for a token" in none.stderr and str(tmp_path / ".ray/auth_token") in none.stderr
    wrong = maskfleet(head, "jobs", "list", code=2, RAY_AUTH_TOKEN="wrong" * 8)
    assert "refuses the token" in wrong.stderr
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(head.token)
    maskfleet(head, "jobs", "list", RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    nobody = maskfleet(head, "jobs", "list", "--address", f"http://127.0.0.1:{free_port()}", code=2)
    assert "nobody answers there" in nobody.stderr


@pytest.mark.cluster
def test_no_secret_is_seen_anywhere(head: Head, drawn: Path, moto: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Jobs read and write a bucket with a planted key; the key is then looked for in all that was written."""
    bucket = make_bucket(moto)
    store = [f"storage.endpoint_url={moto}", "storage.region=us-east-1"]
    store += [f"storage.access_key={ACCESS_KEY}", f"storage.secret_key={PLANTED}"]
    segment = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={drawn / 'val'}", f"output.uri=s3://{bucket}/run"]
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
    with submit_environment(head):
        seen += repr([vars(job) for job in submit.Jobs()._client.list_jobs()])
    assert "6 images" in seen and PLANTED not in seen
    from pipeline.storage.base import StorageSettings
    from pipeline.storage.stores import open_storage

    settings = StorageSettings(endpoint_url=moto, access_key=ACCESS_KEY, secret_key=PLANTED, region="us-east-1")
    written = open_storage(f"s3://{bucket}", settings)
    keys = [info.key for info in written.iter_objects()]
    assert any(key.startswith("run/instances/") for key in keys) and "run/run.json" in keys
    assert any(key.startswith("model/checkpoints/") for key in keys) and any(key.startswith("history/") for key in keys)
    assert [key for key in keys if PLANTED.encode() in written.read_bytes(key)] == []
    files = [path for path in head.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    holding = [path for path in files if PLANTED.encode() in path.read_bytes()]
    assert {path.name for path in holding} <= {SUBMISSION}, "only the package holds it"
    assert {path.stat().st_mode & 0o077 for path in holding} == {0}, "only its owner reads it"


@contextlib.contextmanager
def submit_environment(head: Head) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        patch.setenv("RAY_AUTH_TOKEN", head.token)
        yield


# -- without a cluster


def settings(*words: str, command: str = "segment") -> object:
    return read_settings(command, None, ["model.checkpoint=m", "input.uri=i", "output.uri=s3://b/o", *words])


def test_a_submission_is_named_by_code_and_settings_and_not_by_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = from_settings("segment", settings(), {}).hash()
    secret = ("storage.access_key=a", "storage.secret_key=b")
    assert from_settings("segment", settings(*secret), {"X": "y"}).hash() == name
    assert from_settings("segment", settings("segment.batch_size=3"), {}).hash() != name
    monkeypatch.setattr(job_package, "code_files", lambda: {"jobs/cli.py": Path(__file__)})
    assert from_settings("segment", settings(), {}).hash() != name


def test_paths_become_absolute_and_secrets_leave_the_settings(tmp_path: Path) -> None:
    submission = from_settings("segment", settings("storage.access_key=a", "storage.secret_key=b"), {})
    assert submission.config["input"]["uri"] == str(Path("i").absolute())
    assert submission.config["output"]["uri"] == "s3://b/o" == submission.output
    assert submission.config["cluster"]["address"] == "auto"
    here = Path.cwd()
    assert submission.local_places() == [f"model.checkpoint={here / 'm'}", f"input.uri={here / 'i'}"]
    assert submission.environment == {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert "secret_key': None" in repr(submission.config) and "'b'" not in repr(submission)
    write_package(tmp_path, submission)
    shipped = {"args": ["segment", "--config", "config.yaml"], "environment": submission.environment}
    assert read_submission(tmp_path) == shipped
    assert (tmp_path / SUBMISSION).stat().st_mode & 0o777 == 0o600
    assert read_settings("segment", tmp_path / "config.yaml", []).output.uri == "s3://b/o"
    assert {path.name for path in tmp_path.iterdir()} == {"jobs", "pipeline", "model", "config.yaml", SUBMISSION}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4 * 2**20


def test_a_sweep_takes_its_base_along(tmp_path: Path) -> None:
    base = ROOT / "configs/train/tiny_cpu.yaml"
    words = [f"sweep.base={base}", "sweep.grid.train.learning_rate=[0.1, 0.2]", "sweep.fixed.data.train=photos"]
    submission = from_settings("sweep", read_settings("sweep", None, [*words, "output.uri=s3://b/o"]), {})
    assert submission.config["sweep"]["fixed"] == {"data.train": str(Path.cwd() / "photos")}
    write_package(tmp_path, submission)
    assert (tmp_path / "base.yaml").read_text() == base.read_text()
    assert read_settings("sweep", tmp_path / "config.yaml", []).sweep.base == "base.yaml"


def test_a_switch_of_the_command_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from jobs.cli import app

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


def test_retry_is_submitted_as_words_without_its_secrets() -> None:
    submission = from_words("retry", ["s3://b/run", "storage.secret_key=b", "segment.batch_size=2"], {})
    assert submission.args == ("retry", "s3://b/run", "segment.batch_size=2", "cluster.address=auto")
    assert submission.environment == {"AWS_SECRET_ACCESS_KEY": "b"} and submission.output == "s3://b/run"


def test_only_what_is_set_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("MINE", "m")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert handed_environment(["MINE", "THEIRS=t=u"], credentials=False) == {"MINE": "m", "THEIRS": "t=u"}
    assert handed_environment([], credentials=True)["AWS_SECRET_ACCESS_KEY"] == "s"
    with pytest.raises(ConfigError, match="--env NOT_THERE: is not set here"):
        handed_environment(["NOT_THERE"], credentials=False)


def test_dependencies_are_pinned_to_what_is_here() -> None:
    pins = job_package.pinned_dependencies()
    import pyarrow

    assert f"pyarrow=={pyarrow.__version__}" in pins
    assert not [pin for pin in pins if pin.startswith("ray")]


def test_every_command_can_be_submitted_but_those_for_this_machine() -> None:
    assert set(job_package.SUBMITTED) == {*COMMANDS, "retry"} - {"demo", "schedule", "manifests"}


@pytest.mark.parametrize("words", [["submit", "demo"], ["submit", "segment", "--dry-run"], ["submit", "retry"]])
def test_what_cannot_be_submitted_is_refused(words: list[str]) -> None:
    from typer.testing import CliRunner

    from jobs.cli import app

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and result.stderr.startswith("maskfleet: ")


def test_an_open_cluster_is_warned_of() -> None:
    def jobs(address: str, has_token: bool = False) -> submit.Jobs:
        made = submit.Jobs.__new__(submit.Jobs)
        made.address, made.has_token = address, has_token
        return made

    assert "without a token" in (jobs("http://192.0.2.7:8265").warning() or "")
    assert jobs("http://192.0.2.7:8265", has_token=True).warning() is None
    for host, is_warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            if is_warned and not submit._is_reached_from_outside(port):
                pytest.skip("this machine has no address but loopback")
            assert (jobs(f"http://127.0.0.1:{port}").warning() is not None) == is_warned


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://user:pass@head:8265"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="such as http://head:8265"):
        submit.Jobs(address)


def test_a_package_holds_no_data(tmp_path: Path) -> None:
    names = job_package.code_files()
    assert "jobs/cluster/entrypoint.py" in names and all(name.endswith((".py", ".j2")) for name in names)
    assert json.dumps(sorted(names)) == json.dumps(list(names))
