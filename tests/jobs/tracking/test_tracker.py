"""The thread that sends to MLflow: stores that do not answer, refuse, go away and come back, and how runs end."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config.load import ConfigError
from jobs.config.tracking import TrackingSection
from jobs.interrupt import Interrupted
from jobs.tracking import tracker as tracker_module
from jobs.tracking.tracker import Tracker, check_tracking, open_tracker
from tests.jobs.tracking.stores import files_of, points, record, runs_in, section_of

ROWS = [{"step": 1, "loss": 3.0}]


def ignore(line: str) -> None:
    pass


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers each request with the status that the path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>" + b"x" * 2000)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that refuses."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class TestAtTheDoor:
    def test_without_a_store_nothing_is_asked(self):
        check_tracking(TrackingSection())
        with open_tracker(TrackingSection(), ignore) as tracker:
            assert tracker is None

    def test_nobody_answers(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"MLflow at http://127.0.0.1:{port} cannot be used: Connection refused"):
            check_tracking(section_of(f"http://127.0.0.1:{port}"))

    def test_no_such_host(self):
        with pytest.raises(
            ConfigError, match=r"tracking\.uri: MLflow at http://no-such-host\.invalid cannot be used: "
        ):
            check_tracking(section_of("http://no-such-host.invalid"))

    @pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
    def test_a_server_that_refuses_or_is_no_mlflow(self, refusing: str, status: int):
        started = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            check_tracking(section_of(f"{refusing}/{status}"))
        assert str(status) in str(caught.value) or "too many" in str(caught.value)
        assert "<html>" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
        assert time.monotonic() - started < 15, "MLflow's own attempts are not made"

    def test_a_server_that_never_answers_is_left_by_its_request(self, silent: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with pytest.raises(ConfigError, match="it does not answer in time"):
            check_tracking(section_of(silent))

    def test_a_server_that_never_answers_is_left_by_us(self, silent: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        monkeypatch.setattr(tracker_module, "OPEN_S", 0.5)
        with pytest.raises(ConfigError, match="it does not answer within 0 s"):
            check_tracking(section_of(silent))

    def test_a_run_that_is_refused_is_not_waited_for_again(self, refusing: str):
        started = time.monotonic()
        with pytest.raises(ConfigError, match="403"), Tracker(section_of(f"{refusing}/403"), ignore) as tracker:
            tracker.start(record(ROWS))
        assert tracker.outcome == "" and time.monotonic() - started < 15

    def test_the_limits_leave_room_for_the_half_minute_that_is_promised(self):
        assert tracker_module.OPEN_S < 30


class TestEnds:
    def test_the_run_has_values_files_and_a_place_people_find(self, tmp_path: Path):
        with Tracker(section_of(tmp_path), ignore) as tracker:
            tracker.start(record(ROWS))
        (run,) = runs_in(tmp_path)
        assert run.info.status == "FINISHED" and points(tmp_path, run, "loss") == [(1, 3.0)]
        assert tracker.outcome == f"MLflow run a run: {run.info.run_id} in {tmp_path}"

    @pytest.mark.parametrize(
        ("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (Interrupted(""), "KILLED")]
    )
    def test_an_error_and_an_interrupt_are_told_apart(self, tmp_path: Path, error: BaseException, status: str):
        with pytest.raises(type(error)), Tracker(section_of(tmp_path), ignore) as tracker:
            tracker.start(record(ROWS))
            raise error
        (run,) = runs_in(tmp_path)
        assert run.info.status == status and points(tmp_path, run, "loss") == [(1, 3.0)]

    def test_a_run_that_was_ended_keeps_its_status(self, tmp_path: Path):
        failed = record(ROWS, name="failed")
        with Tracker(section_of(tmp_path), ignore) as tracker:
            tracker.update(failed)
            tracker.end(failed, "FAILED")
            tracker.start(record([], name="sweep"))
        assert {run.info.run_name: run.info.status for run in runs_in(tmp_path)} == {
            "failed": "FAILED",
            "sweep": "FINISHED",
        }


class TestAStoreThatGoesAway:
    """The file store's folder is moved elsewhere, as a server is stopped."""

    def test_what_failed_is_said_once_and_sent_with_the_next_values(self, tmp_path: Path):
        rows, said = list(ROWS), list[str]()
        store, elsewhere = tmp_path / "ml", tmp_path / "elsewhere"
        kept = record(rows)
        with Tracker(section_of(store), said.append) as tracker:
            tracker.start(kept)
            store.rename(elsewhere)
            for step in (2, 3):
                rows.append({"step": step, "loss": 1.0})
                tracker.update(kept)
                tracker.call(lambda: None)  # what is waiting is done first
            assert len(said) == 1 and said[0].endswith("; it is sent later")
            elsewhere.rename(store)
            tracker.update(kept)
            tracker.call(lambda: None)
            (run,) = runs_in(store)
            assert points(store, run, "loss") == [(1, 3.0), (2, 1.0), (3, 1.0)]
        assert len(runs_in(store)) == 1 and "WARNING" not in tracker.outcome

    def test_what_was_never_sent_is_said_at_the_end_and_sent_by_the_next_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tracker_module, "RETRY_S", 0.1)
        store, elsewhere, kept = tmp_path / "ml", tmp_path / "elsewhere", record(ROWS)
        with Tracker(section_of(store), ignore) as tracker:
            tracker.start(kept)
            store.rename(elsewhere)
        assert tracker.outcome.startswith(f"WARNING: not all was sent to MLflow at {store}: ")
        assert tracker.outcome.endswith("the output has it all, and the same command again sends it")
        elsewhere.rename(store)
        with Tracker(section_of(store), ignore) as tracker:
            tracker.end(kept, "FINISHED")
        (run,) = runs_in(store)
        assert points(store, run, "loss") == [(1, 3.0)] and run.info.status == "FINISHED"

    def test_the_end_waits_no_longer_than_it_may(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        released = threading.Event()
        slow = record(ROWS, read_rows=lambda: released.wait(60) and [])
        started = time.monotonic()
        with Tracker(section_of(tmp_path), ignore, end_s=0.5) as tracker:
            tracker.start(slow)
        assert time.monotonic() - started < 10 and "it does not take the rest within 0 s" in tracker.outcome
        released.set()

    def test_the_end_waits_as_long_as_runs_arrive(self, tmp_path: Path):
        def write_slowly(folder: Path) -> None:
            time.sleep(0.3)

        with Tracker(section_of(tmp_path), ignore, end_s=0.8) as tracker:
            for number in range(6):
                tracker.update(record(ROWS, name=str(number), write_files=write_slowly))
        assert "WARNING" not in tracker.outcome
        assert [run.info.status for run in runs_in(tmp_path)] == ["FINISHED"] * 6

    def test_files_that_are_not_taken_leave_the_figures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """As of a server whose files lie in a bucket that this machine has no client for."""
        monkeypatch.setattr(tracker_module, "RETRY_S", 0.1)
        said: list[str] = []

        def write_files(folder: Path) -> None:
            raise ModuleNotFoundError("No module named 'boto3'")

        kept = record(ROWS, write_files=write_files)
        with Tracker(section_of(tmp_path), said.append) as tracker:
            tracker.start(kept)
        (run,) = runs_in(tmp_path)
        assert run.info.status == "FINISHED" and points(tmp_path, run, "loss") == [(1, 3.0)]
        assert "No module named 'boto3'" in tracker.outcome and len(said) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real tracking server on SQLite, which MLflow needs sqlalchemy and alembic for."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app
        from werkzeug.serving import make_server

        wsgi = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=wsgi.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{wsgi.server_port}"
        wsgi.shutdown()


def test_a_real_server_holds_the_same(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "loss/loss": step / 2} for step in range(1, 1203)]
    parent = record([], name="sweep")
    kept = record(rows, parent=parent, settings={f"key.{i}": i for i in range(130)})
    check_tracking(section_of(server))
    for _ in range(2):  # the second time as another process
        with Tracker(section_of(server), ignore) as tracker:
            tracker.start(parent)
            tracker.start(kept)
    assert "View run" not in capfd.readouterr().out
    by_name = {run.info.run_name: run for run in runs_in(server)}
    assert (
        len(runs_in(server)) == 2 and by_name["a run"].data.tags["mlflow.parentRunId"] == by_name["sweep"].info.run_id
    )
    assert points(server, by_name["a run"], "loss/loss") == [(row["step"], row["loss/loss"]) for row in rows]
    assert len(by_name["a run"].data.params) == 130 and by_name["a run"].info.status == "FINISHED"
    assert files_of(server, by_name["a run"]) == {"rows.txt"}
    assert tracker.outcome.startswith(f"MLflow run sweep: {server}/#/experiments/")
