"""What a tick runs: the steps that are due, their settings, and programs started for real."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.checkpoints import weights_hash
from jobs.config.load import load_config
from jobs.config.schedule import ScheduleConfig
from jobs.schedule.scheduler import Scheduler, run_start
from jobs.schedule.state import ScheduleState
from jobs.schedule.tasks import (
    Programs,
    Stopped,
    TickFailed,
    credentials_of,
    due_evaluations,
    fill_template,
    last_run,
    model_name,
    run_tick,
)
from pipeline.evaluation.metrics import Metrics
from pipeline.storage.stores import open_storage
from tests.jobs.schedule.simulation import World, at, make_config, write_checkpoint


def test_a_segmentation_leaves_out_what_earlier_runs_have_segmented_and_writes_no_run_without_anything_new(
    drawn: Path, metrics: Metrics, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "m", 1)
    images = tmp_path / "photos"
    images.mkdir()
    section = {"checkpoint": str(tmp_path / "m"), "images": str(images), "output_uri": str(tmp_path / "{date}")}
    world = World("2026-03-01T10:00:10", metrics)
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path, cron="0 10 * * *", evaluate=None, segment=section))
    photos = sorted((drawn / "1/val").iterdir())
    assert len(photos) == 2
    steps: list[str] = []
    for new in ([], [photos[0]], [], [photos[1]], []):
        for photo in new:
            shutil.copy2(photo, images / photo.name)
        (start,) = scheduler.begin(world.now)
        ended = run_start(scheduler, start, world, lambda: world.now)
        assert ended.outcome == "done", ended
        steps += ended.steps
        world.now += timedelta(days=1)
    first, second = str(tmp_path / "2026-03-02"), str(tmp_path / "2026-03-04")
    nothing = f"nothing new in {images}"
    assert steps == [nothing, f"segmented {images}: {first}", nothing, f"segmented {images}: {second}", nothing]
    assert list(world.runs) == [first, second] and last_run(scheduler.state, "eval") == second
    assert [run["input"].get("since_run") for run in world.runs.values()] == [None, first]


def test_templates_take_the_ticks_own_day_in_its_zone(drawn: Path, tmp_path: Path) -> None:
    config = make_config(drawn, tmp_path, tmp_path, timezone="Asia/Tokyo")
    tick, template = at("2026-03-01T18:00:00"), "{date}/{time}/{task}/{model}/{data}"
    filled = fill_template(template, config, config.tasks[0], tick, model="m")
    assert filled == "2026-03-02/0300+0900/eval/m/all"


def test_the_hour_that_comes_twice_has_two_names(drawn: Path, tmp_path: Path) -> None:
    config = make_config(drawn, tmp_path, tmp_path, timezone="Europe/Berlin")
    ticks = [at("2026-10-25T00:30:00"), at("2026-10-25T01:30:00")]
    names = [fill_template("{date}-{time}", config, config.tasks[0], tick) for tick in ticks]
    assert names == ["2026-10-25-0230+0200", "2026-10-25-0230+0100"]


def test_a_model_is_named_by_its_training_its_step_and_its_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "r50", 7)
    step = f"{tmp_path}/r50/checkpoints/step-00000007"
    sha256 = weights_hash(step)
    assert model_name(step) == f"r50-step-00000007-{sha256[:8]}"
    shutil.copytree(step, tmp_path / "released")
    assert model_name(f"{tmp_path}/released") == f"released-{sha256[:8]}"


def test_only_new_weights_and_new_truth_are_due(drawn: Path, metrics: Metrics, tmp_path: Path) -> None:
    models = tmp_path / "m"
    write_checkpoint(models, 1)
    config = make_config(drawn, models, tmp_path)
    task = config.tasks[0]
    assert task.evaluate is not None
    due = [(Path(checkpoint).name, data.name) for checkpoint, data in due_evaluations(task.evaluate)]
    assert due == [("step-00000001", "set1"), ("step-00000001", "set2")]
    world = World("2026-03-01T10:00:10", metrics)
    state = ScheduleState(open_storage(str(tmp_path / "state")))
    result = run_tick(config, task, at("2026-03-01T10:00:00"), state, world)
    assert [step.split(": ")[0].split()[-1] for step in result.steps] == ["set1", "set2"] and result.gates == []
    assert list(due_evaluations(task.evaluate)) == []
    # The same weights and the same truth at another place are not new.
    shutil.copytree(models, tmp_path / "copy")
    shutil.copytree(drawn, tmp_path / "drawn")
    copied = make_config(tmp_path / "drawn", tmp_path / "copy", tmp_path).tasks[0].evaluate
    assert copied is not None and list(due_evaluations(copied)) == []
    write_checkpoint(tmp_path / "copy", 2)
    assert [(Path(checkpoint).name, data.name) for checkpoint, data in due_evaluations(copied)] == [
        ("step-00000002", "set1"),
        ("step-00000002", "set2"),
    ]


def test_credentials_reach_the_steps_by_the_environment_and_never_by_a_file(drawn: Path, tmp_path: Path) -> None:
    class Recorder:
        """Keeps what it is asked to run, and lets it fail."""

        def run(self, args: list[str], timeout_s: float) -> tuple[int, str]:
            self.args, self.settings = args, Path(args[3]).read_text()
            return 1, "no such bucket"

        def wait(self, seconds: float) -> None: ...
        def stop(self) -> None: ...

    write_checkpoint(tmp_path / "m", 1)
    words = ["storage.access_key=planted-a", "storage.secret_key=planted-s", "storage.region=eu-1"]
    words += ["schedule.submit_to=http://head:8265"]
    base = make_config(drawn, tmp_path / "m", tmp_path).model_dump(mode="json", exclude={"storage", "on_failure"})
    config = load_config(ScheduleConfig, None, words, base=base)
    runner, state = Recorder(), ScheduleState(open_storage(str(tmp_path / "state")))
    with pytest.raises(TickFailed, match="segment ended with exit code 1: no such bucket"):
        run_tick(config, config.tasks[0], at("2026-03-01T10:00:00"), state, runner)
    assert runner.args[:3] == ["submit", "segment", "--config"]
    assert runner.args[4:] == ["--address", "http://head:8265"]
    assert yaml.safe_load(runner.settings)["storage"]["region"] == "eu-1" and "planted" not in runner.settings
    assert credentials_of(config) == {"AWS_ACCESS_KEY_ID": "planted-a", "AWS_SECRET_ACCESS_KEY": "planted-s"}


def test_programs_give_their_exit_code_and_last_line_and_are_ended_in_time() -> None:
    said: list[str] = []
    programs = Programs({}, said.append)
    assert programs.run(["verify", "/no/such/run"], 120) == (2, programs.run(["verify", "/no/such/run"], 120)[1])
    assert "holds no run" in said[-1]
    with pytest.raises(TimeoutError, match="verify took longer than"):
        programs.run(["verify", "/no/such/run"], 0.2)
    programs.stop()
    with pytest.raises(Stopped):
        programs.run(["verify", "/no/such/run"], 120)


def test_a_program_that_starts_while_the_scheduler_stops_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs({}, lambda line: None)
    start = subprocess.Popen
    started: list[subprocess.Popen[str]] = []

    def stop_and_start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        programs.stop()
        started.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", stop_and_start)
    with pytest.raises(Stopped):
        programs.run(["verify", "/no/such/run"], 300)
    assert started[0].returncode == -signal.SIGTERM
