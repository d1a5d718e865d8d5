"""What a tick runs: the steps that are due, their settings, and programs started for real."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from jobs.schedule.scheduler import Scheduler, run_start
from jobs.schedule.tasks import Programs, Stopped, fill_template, last_run
from pipeline.evaluation.metrics import Metrics
from tests.jobs.schedule.simulation import World, at, make_config, write_checkpoint


def test_new_photos_are_segmented_after_what_the_task_has_seen(drawn: Path, metrics: Metrics, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", 1)
    section = {"checkpoint": str(tmp_path / "m"), "images": str(drawn / "1/val")}
    section["output_uri"] = str(tmp_path / "{date}")
    world = World("2026-03-01T10:00:10", metrics)
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path, cron="0 10 * * *", evaluate=None, segment=section))
    for _ in range(2):
        (start,) = scheduler.begin(world.now)
        run_start(scheduler, start, world, lambda: world.now)
        world.now += timedelta(days=1)
    first, second = str(tmp_path / "2026-03-01"), str(tmp_path / "2026-03-02")
    assert list(world.runs) == [first, second] and last_run(scheduler.state, "eval") == second
    assert [run["input"].get("since_run") for run in world.runs.values()] == [None, first]


def test_templates_take_the_ticks_own_day_in_its_zone(drawn: Path, tmp_path: Path) -> None:
    config = make_config(drawn, tmp_path, tmp_path, timezone="Asia/Tokyo")
    tick, template = at("2026-03-01T18:00:00"), "{date}/{time}/{task}/{model}/{data}"
    filled = fill_template(template, config, config.tasks[0], tick, model="m")
    assert filled == "2026-03-02/0300/eval/m/all"


def test_programs_give_their_code_and_last_word_and_are_ended_in_time() -> None:
    said: list[str] = []
    programs = Programs({}, said.append)
    assert programs.run(["verify", "/no/such/run"], 120) == (2, programs.run(["verify", "/no/such/run"], 120)[1])
    assert "holds no run" in said[-1]
    with pytest.raises(TimeoutError, match="verify took longer than"):
        programs.run(["verify", "/no/such/run"], 0.2)
    programs.stop()
    with pytest.raises(Stopped):
        programs.run(["verify", "/no/such/run"], 120)
