"""MLflow's client on its own file store: one run a record, each value once, what is refused, no usage statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from jobs.config.load import ConfigError, load_config
from jobs.config.segment import SegmentConfig
from jobs.home import VERSION
from jobs.tracking.store import CHANGED_TAG, ID_FILE, MlflowStore, reason_of, record_id, to_parameters, to_tags
from pipeline.storage.local import LocalStorage
from tests.jobs.tracking.stores import client_of, files_of, points, record, runs_in, section_of
from tests.paths import ROOT

ROWS = [{"step": 1, "loss/loss": 3.0}, {"step": 2, "loss/loss": 2.0, "validation/segm_AP": 0.5}]


class TestOneRunARecord:
    def test_another_process_finds_the_run_and_sends_only_what_it_lacks(self, tmp_path: Path):
        store, kept = tmp_path / "ml", record(ROWS)
        first = MlflowStore(section_of(store))
        first.open(kept)
        first.send_rows(kept)
        grown = record([*ROWS, {"step": 3, "loss/loss": 1.0}], id=kept.id)
        for _ in range(2):
            second = MlflowStore(section_of(store))  # knows nothing of the first, as after kill -9
            second.open(grown)
            second.send_rows(grown)
            second.send_rows(grown)
        (run,) = runs_in(store)
        assert points(store, run, "loss/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert points(store, run, "validation/segm_AP") == [(2, 0.5)]
        assert run.info.run_name == "a run" and run.data.tags["maskfleet.model"] == "tiny"

    def test_a_step_that_is_done_again_keeps_its_first_value(self, tmp_path: Path):
        kept = record(ROWS)
        for rows in (ROWS, [{"step": 2, "loss/loss": 9.0}]):
            store = MlflowStore(section_of(tmp_path))
            store.open(kept)
            store.send_rows(record(rows, id=kept.id))
        (run,) = runs_in(tmp_path)
        assert points(tmp_path, run, "loss/loss") == [(1, 3.0), (2, 2.0)]

    def test_a_run_that_ended_runs_again_and_ends_again(self, tmp_path: Path):
        kept = record(ROWS)
        for status in ("FAILED", "FINISHED"):
            store = MlflowStore(section_of(tmp_path))
            store.open(kept)
            assert [run.info.status for run in runs_in(tmp_path)] == ["RUNNING"]
            store.end(kept, status)
            assert [run.info.status for run in runs_in(tmp_path)] == [status]
        MlflowStore(section_of(tmp_path)).open(kept, is_running=False)
        assert [run.info.status for run in runs_in(tmp_path)] == ["FINISHED"]

    def test_of_two_runs_with_the_id_the_older_one_is_taken_and_of_a_deleted_one_none(self, tmp_path: Path):
        kept = record([])
        first = MlflowStore(section_of(tmp_path)).open(kept)
        (run,) = runs_in(tmp_path)
        client_of(tmp_path).create_run(run.info.experiment_id, tags={"maskfleet.id": kept.id})
        assert MlflowStore(section_of(tmp_path)).open(kept) == first
        for run in runs_in(tmp_path):
            client_of(tmp_path).delete_run(run.info.run_id)
        assert MlflowStore(section_of(tmp_path)).open(kept) != first

    def test_a_nested_run_names_its_parent(self, tmp_path: Path):
        parent = record([], name="sweep")
        MlflowStore(section_of(tmp_path)).open(record([], name="trial", parent=parent))
        by_name = {run.info.run_name: run for run in runs_in(tmp_path)}
        assert by_name["trial"].data.tags["mlflow.parentRunId"] == by_name["sweep"].info.run_id

    def test_more_values_than_one_request_takes(self, tmp_path: Path):
        rows = [{"step": step, "a": float(step), "b": float("nan"), "c": float("inf")} for step in range(2500)]
        kept = record(rows, settings={f"key.{i}": i for i in range(250)})
        store = MlflowStore(section_of(tmp_path))
        store.open(kept)
        store.send_rows(kept)
        (run,) = runs_in(tmp_path)
        assert len(points(tmp_path, run, "a")) == 2500 and set(run.data.metrics) == {"a"}
        assert len(run.data.params) == 250


class TestSettings:
    def test_awkward_keys_and_values_are_taken(self, tmp_path: Path):
        settings = {
            "data.rename.a/../b#": "x\ny",
            "none": None,
            "list": [1, 2],
            "long": "x" * 9000,
            "empty": "",
            "ä": "ö",
        }
        MlflowStore(section_of(tmp_path)).open(record([], settings=settings))
        (run,) = runs_in(tmp_path)
        params = run.data.params
        assert params["data.rename.a_.._b_"] == '"x\\ny"' and params["none"] == "null" and params["list"] == "[1, 2]"
        assert params["long"] == "x" * 6000 and params["empty"] == "" and params["ä"] == "ö"
        assert CHANGED_TAG not in run.data.tags

    def test_a_setting_that_changed_is_named_in_a_tag(self, tmp_path: Path):
        kept = record([], settings={"train.max_steps": 3, "text": "x" * 9000})
        MlflowStore(section_of(tmp_path)).open(kept)
        longer = record([], id=kept.id, settings={"train.max_steps": 6, "text": "x" * 9000, "train.new": True})
        MlflowStore(section_of(tmp_path)).open(longer)
        (run,) = runs_in(tmp_path)
        assert run.data.params["train.max_steps"] == "3" and run.data.params["train.new"] == "true"
        assert run.data.tags[CHANGED_TAG] == "train.max_steps=6"

    def test_parameters_have_no_storage_and_no_tracking(self):
        words = ["model.checkpoint=m", "input.uri=i", "output.uri=o", "storage.access_key=planted"]
        settings = to_parameters(load_config(SegmentConfig, None, [*words, "storage.secret_key=planted"]))
        assert settings["output.uri"] == "o" and "planted" not in str(settings)
        assert not any(key.startswith(("storage", "tracking")) for key in settings)

    def test_tags_name_version_command_and_places(self):
        tags = to_tags("train", model="coco", data="")
        assert tags["maskfleet.version"] == VERSION and tags["maskfleet.model"] == "coco"
        assert tags["mlflow.source.name"] == "maskfleet train" and "maskfleet.data" not in tags


def test_files_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    kept, store = record(ROWS), MlflowStore(section_of(tmp_path))
    store.open(kept)
    store.send_files(kept)
    nested = record([], id=kept.id, write_files=lambda folder: _write(folder / "checkpoints/step/model", "w"))
    store.send_files(nested)
    store.send_files(record(ROWS[:1], id=kept.id))
    (run,) = runs_in(tmp_path)
    assert files_of(tmp_path, run) == {"rows.txt", "checkpoints"}
    local = client_of(tmp_path).download_artifacts(run.info.run_id, "rows.txt", str(tmp_path))
    assert Path(local).read_text() == "1"
    assert files_of(tmp_path, run, "checkpoints/step") == {"checkpoints/step/model"}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


class TestIds:
    def test_an_output_keeps_its_id(self, tmp_path: Path):
        first = record_id(LocalStorage(tmp_path))
        assert record_id(LocalStorage(tmp_path)) == first and first != record_id(LocalStorage(tmp_path / "other"))

    @pytest.mark.parametrize("content", ["", "[]", '{"id": 3}', '{"id": "x\' OR \'1\'"}', "{"])
    def test_something_else_in_its_file_is_refused(self, tmp_path: Path, content: str):
        (tmp_path / ID_FILE).write_text(content)
        with pytest.raises(ValueError, match=r"tracking\.json holds no id of a record; remove it"):
            record_id(LocalStorage(tmp_path))


class TestCheck:
    def test_looking_writes_nothing(self, tmp_path: Path):
        MlflowStore(section_of(tmp_path / "new/ml")).check()
        assert not (tmp_path / "new").exists()
        (tmp_path / "empty").mkdir()
        MlflowStore(section_of(tmp_path / "empty")).check()
        assert not [*(tmp_path / "empty").iterdir()]
        MlflowStore(section_of(tmp_path / "ml")).open(record([]))
        MlflowStore(section_of(tmp_path / "ml", experiment="another")).check()
        assert client_of(tmp_path / "ml").get_experiment_by_name("another") is None

    def test_a_file_and_a_folder_of_something_else_are_refused(self, tmp_path: Path):
        (tmp_path / "photo.jpg").write_text("")
        for uri, words in ((tmp_path, "no file store of MLflow's"), (tmp_path / "photo.jpg", "is a file; allowed is")):
            with pytest.raises(ConfigError, match=words):
                MlflowStore(section_of(uri)).check()

    def test_a_deleted_experiment_is_refused(self, tmp_path: Path):
        MlflowStore(section_of(tmp_path)).open(record([]))
        (run,) = runs_in(tmp_path)
        client_of(tmp_path).delete_experiment(run.info.experiment_id)
        for use in (lambda store: store.check(), lambda store: store.open(record([]))):
            with pytest.raises(ConfigError, match=r"tracking\.experiment: 'maskfleet' was deleted"):
                use(MlflowStore(section_of(tmp_path)))

    def test_without_mlflow_it_says_how_to_install_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "mlflow", None)
        with pytest.raises(ConfigError, match=r"MLflow is not installed here .*pip install 'maskfleet\[tracking\]'"):
            MlflowStore(section_of(tmp_path))


def test_reasons_are_one_line() -> None:
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError:
            raise MlflowException("API request to http://x failed with exception ...")  # noqa: B904  # as MLflow does
    except MlflowException as error:
        assert reason_of(error) == "Connection refused"
    page = MlflowException("endpoint /api failed with error code 404 != 200. Response body: '<html>\n...")
    assert reason_of(page) == "endpoint /api failed with error code 404 != 200"
    assert len(reason_of(ValueError("x\n" * 1000))) == 300 and reason_of(KeyError()) == "KeyError"


WATCHED = """
import sys, threading
seen = threading.Event()
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        seen.set()
        print("socket:", event, args[1:], flush=True)
        raise OSError("no sockets")
sys.addaudithook(watch)
"""
OURS = """
from pathlib import Path
from tests.jobs.tracking.stores import record, section_of
from jobs.tracking.store import MlflowStore
kept, store = record([{"step": 1, "a": 1.0}]), MlflowStore(section_of(Path(sys.argv[1])))
store.check(); store.open(kept); store.send_rows(kept); store.send_files(kept); store.end(kept, "FINISHED")
"""
# The same without our settings, so that the watch is known to see what it looks for.
PLAIN = """
import os
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
client.create_run(client.create_experiment("x"))
seen.wait(60)  # they are sent by a thread, which may come late
"""


@pytest.mark.parametrize("program", [OURS, PLAIN], ids=["ours", "plain"])
def test_no_usage_statistics_are_sent(tmp_path: Path, program: str) -> None:
    # MLflow sends none from tests and from CI, which it tells by these.
    hidden = ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + program, str(tmp_path / "ml")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ("socket:" in done.stdout) == (program is PLAIN), done.stdout
    assert program is PLAIN or done.stdout + done.stderr == ""
