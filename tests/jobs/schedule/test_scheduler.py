"""The scheduler: its clockwork through a simulated week, and its policies one by one."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from jobs.checkpoints import weights_hash
from jobs.config.load import load_config
from jobs.config.schedule import ScheduleConfig
from jobs.schedule.scheduler import Ended, Scheduler, Start, iter_ticks, last_tick, run_start
from pipeline.evaluation.metrics import Metrics
from pipeline.results.history import load_history
from tests.jobs.schedule.simulation import Machine, World, at, make_config, records_of, write_checkpoint

BERLIN = "Europe/Berlin"


def history_pairs(history: str) -> pd.DataFrame:
    frame = load_history(history)
    return frame.drop_duplicates("evaluation_id")[["evaluation_id", "model_sha256", "truth_sha256"]]


def test_a_week_with_two_schedulers_deaths_missed_ticks_and_a_failing_gate(
    drawn: Path, metrics: Metrics, tmp_path: Path
) -> None:
    models = tmp_path / "models/r50"
    sent = tmp_path / "sent"
    sent.mkdir()
    config = make_config(drawn, models, tmp_path, cron="0 */6 * * *", timezone=BERLIN, timeout_s=3 * 3600, retries=1)
    command = [sys.executable, "-c", f"import sys,uuid; open(r'{sent}/'+uuid.uuid4().hex,'w').write(sys.stdin.read())"]
    config = config.model_copy(update={"on_failure": config.on_failure.model_copy(update={"command": tuple(command)})})
    # The week in which Germany's clocks go back.
    start, end = at("2026-10-22T00:05:00"), at("2026-10-29T00:05:00")
    world = World("2026-10-22T00:05:00", metrics)
    write_checkpoint(models, 1)

    def duration(start: Start) -> timedelta:
        return timedelta(hours=7 if start.tick == at("2026-10-23T10:00:00") else 1)

    machines = [Machine(world, config, timedelta(minutes=offset), duration) for offset in (0, 3)]
    for day in range(1, 7):  # a new checkpoint each day
        world.later(start + timedelta(days=day), partial(write_checkpoint, models, day + 1))
    bad_step = 3
    bad = f"{models}/checkpoints/step-{bad_step:08d}"
    world.later(at("2026-10-24T00:06:00"), lambda: world.bad_models.add(weights_hash(bad)))
    world.later(at("2026-10-25T05:30:00"), machines[0].down)  # both die while a tick runs
    world.later(at("2026-10-25T05:30:00"), machines[1].down)
    world.later(at("2026-10-26T02:10:00"), machines[0].up)
    world.later(at("2026-10-26T02:10:00"), machines[1].up)
    world.later(at("2026-10-27T23:30:00"), lambda: setattr(world, "num_to_fail", 1))  # one step fails, its retry passes
    world.play(end)

    ticks = list(iter_ticks("0 */6 * * *", config.zone_of(config.tasks[0]), start, end))
    records = records_of(machines[0].scheduler)
    assert [tick for tick in ticks if tick not in records] == []
    outcomes = Counter(record["outcome"] for record in records.values())
    assert outcomes["gate_failed"] == 1 and outcomes["failed"] == 0
    assert outcomes["skipped"] == 1 and records[at("2026-10-23T16:00:00")]["outcome"] == "skipped"
    assert outcomes["missed"] >= 1 and outcomes.total() == outcomes["done"] + outcomes["missed"] + 2
    # Every model that was the newest at a tick, on every data set, once; the fourth came and went while both were down.
    pairs = history_pairs(str(tmp_path / "history"))
    assert len(pairs) == len(pairs.drop_duplicates(["model_sha256", "truth_sha256"])) == 6 * 2
    seen = {weights_hash(f"{models}/checkpoints/step-{step:08d}") for step in (1, 2, 3, 5, 6, 7)}
    assert set(pairs["model_sha256"]) == seen
    assert set(world.evaluated.values()) == {1}
    messages = [json.loads(path.read_text()) for path in sent.iterdir()]
    assert [message["outcome"] for message in messages] == ["gate_failed"]
    assert f"step-{bad_step:08d}" in messages[0]["reason"] and "segm AP 0.1" in messages[0]["reason"]


def test_two_schedulers_never_take_on_the_same_tick(drawn: Path, metrics: Metrics, tmp_path: Path) -> None:
    config = make_config(drawn, tmp_path / "m", tmp_path)
    schedulers = [Scheduler(config) for _ in range(8)]
    barrier, starts = threading.Barrier(8), list[Start]()

    def look(scheduler: Scheduler) -> None:
        barrier.wait()
        starts.extend(scheduler.begin(at("2026-03-01T10:00:30")))

    threads = [threading.Thread(target=look, args=(scheduler,)) for scheduler in schedulers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [start.tick for start in starts] == [at("2026-03-01T10:00:00")]
    # Both may work after all, when the first one's time is up; one of them records it.
    late = starts[0].until + timedelta(seconds=1)
    again = [start for scheduler in schedulers for start in scheduler.begin(late) if start.tick == starts[0].tick]
    assert [start.number for start in again] == [2]
    recorded = [schedulers[i].end(start, Ended("done", str(i)), late) for i, start in enumerate([starts[0], again[0]])]
    assert recorded == [True, False]
    assert records_of(schedulers[0])[starts[0].tick]["reason"] == "0"


def test_a_tick_whose_first_start_was_released_late_is_started_again(drawn: Path, tmp_path: Path) -> None:
    slow, dies, last = (Scheduler(make_config(drawn, tmp_path, tmp_path)) for _ in range(3))
    (first,) = slow.begin(at("2026-03-01T10:00:10"))
    (second,) = dies.begin(first.until + timedelta(seconds=1))
    slow.release(first)  # its time was up, and a second start of the tick stands beside it
    assert last.begin(second.until - timedelta(seconds=1)) == []
    (third,) = last.begin(second.until + timedelta(seconds=1))
    assert (first.tick, first.number) == (second.tick, 1) and (second.number, third.number) == (2, 3)
    assert third.tick == first.tick


@pytest.mark.parametrize(
    ("policy", "run", "missed"),
    [
        ("once", ["13"], ["10", "11", "12"]),
        ("all", ["10", "11", "12", "13"], []),
        ("none", [], ["10", "11", "12", "13"]),
    ],
)
def test_missed_ticks(policy: str, run: list[str], missed: list[str], drawn: Path, tmp_path: Path) -> None:
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path, missed=policy))
    for start in scheduler.begin(at("2026-03-01T09:00:01")):
        scheduler.end(start, Ended("done"), at("2026-03-01T09:00:02"))
    now, ran = at("2026-03-01T13:40:00"), []
    while starts := scheduler.begin(now):
        ran += [f"{start.tick:%H}" for start in starts]
        scheduler.end(starts[0], Ended("done"), now)
    records = records_of(scheduler)
    assert ran == run
    assert [f"{tick:%H}" for tick in sorted(records) if records[tick]["outcome"] == "missed"] == missed
    assert scheduler.begin(now) == []  # a second pass finds nothing


@pytest.mark.parametrize(("policy", "after"), [("skip", []), ("queue", ["11", "12"])])
def test_a_run_that_lasts_over_its_next_ticks(policy: str, after: list[str], drawn: Path, tmp_path: Path) -> None:
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path, overlap=policy))
    (long,) = scheduler.begin(at("2026-03-01T10:00:10"))
    for hour in (11, 12):
        assert scheduler.begin(at(f"2026-03-01T{hour}:00:10")) == []
    now, ran = at("2026-03-01T12:50:00"), []
    scheduler.end(long, Ended("done"), now)
    while starts := scheduler.begin(now):
        ran += [f"{start.tick:%H}" for start in starts]
        scheduler.end(starts[0], Ended("done"), now)
    assert ran == after
    skipped = [f"{tick:%H}" for tick, record in sorted(records_of(scheduler).items()) if record["outcome"] == "skipped"]
    assert skipped == (["11", "12"] if policy == "skip" else [])


def test_a_failed_tick_is_tried_again_and_reported_once(drawn: Path, metrics: Metrics, tmp_path: Path) -> None:
    bodies: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    write_checkpoint(tmp_path / "m", 1)
    world = World("2026-03-01T10:00:10", metrics)
    config = make_config(drawn, tmp_path / "m", tmp_path, retries=1)
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        values = json.loads(config.model_dump_json(exclude={"on_failure", "storage"}))
        values["on_failure"] = {"webhook": f"http://127.0.0.1:{server.server_port}/secret-path"}
        config = load_config(ScheduleConfig, None, [], base=values)
        said: list[str] = []
        scheduler = Scheduler(config, said.append)
        for num_to_fail, outcome in ((1, "done"), (2, "failed")):
            world.num_to_fail = num_to_fail
            (start,) = scheduler.begin(world.now)
            assert run_start(scheduler, start, world, lambda: world.now).outcome == outcome
            world.now += timedelta(hours=1)
            write_checkpoint(tmp_path / "m", num_to_fail + 1)
        server.shutdown()
    (message,) = [json.loads(body) for body in bodies]
    assert message["outcome"] == "failed" and "the network is down (try 2 of 2)" in message["reason"]
    assert "secret-path" not in "".join(said) + repr(config)


def test_cron_in_a_zone_whose_clocks_change() -> None:
    zone = ZoneInfo(BERLIN)
    nights = list(iter_ticks("30 2 * * *", zone, at("2026-03-27T12:00:00"), at("2026-03-30T12:00:00")))
    assert len(nights) == 3  # 02:30 does not exist on the 29th, and the tick is not lost
    autumn = list(iter_ticks("30 2 * * *", zone, at("2026-10-24T12:00:00"), at("2026-10-25T12:00:00")))
    assert len(autumn) == 1  # 02:30 is there twice, and runs once
    assert last_tick("* * * * *", zone, at("2026-03-01T10:00:00")) == at("2026-03-01T10:00:00")


def test_a_state_from_a_clock_that_was_ahead_is_said_once_and_does_not_silence_the_schedule(
    drawn: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path), said.append)
    (first,) = scheduler.begin(at("2026-03-01T10:00:10"))
    scheduler.end(first, Ended("done"), at("2026-03-01T10:01:00"))
    scheduler.state.move_cursor("eval", at("2031-01-01T00:00:00"))
    for hour in (11, 12):
        now = at(f"2026-03-01T{hour}:00:10")
        (start,) = scheduler.begin(now)
        assert start.tick == at(f"2026-03-01T{hour}:00:00")
        scheduler.end(start, Ended("done"), now)
        scheduler.state.move_cursor("eval", at("2031-01-01T00:00:00"))
        assert scheduler.begin(now) == [], "what is done is not done again"
    assert [text for text in said if "in the future" in text] == [
        "eval: the state says that all is done up to 2031-01-01 00:00Z, in the future: the clock of a scheduler is or "
        "was wrong; ticks are looked up one by one"
    ]
    assert scheduler.state.cursor("eval") == at("2026-03-01T12:00:00"), "and the cursor is put right"


def test_a_schedule_first_seen_by_a_clock_that_was_ahead_runs(drawn: Path, tmp_path: Path) -> None:
    ahead = Scheduler(make_config(drawn, tmp_path, tmp_path))
    ahead.begin(at("2031-01-01T00:00:10"))
    (start,) = Scheduler(make_config(drawn, tmp_path, tmp_path)).begin(at("2026-03-01T10:00:10"))
    assert start.tick == at("2026-03-01T10:00:00")


def test_a_start_noted_by_a_clock_that_was_ahead_does_not_block_its_tick(drawn: Path, tmp_path: Path) -> None:
    scheduler = Scheduler(make_config(drawn, tmp_path, tmp_path))
    tick, now = at("2026-03-01T10:00:00"), at("2026-03-01T10:00:10")
    mark = {"scheduler": "other", "when": "2031-01-01T00:00:00+00:00", "until": "2031-01-01T12:00:00+00:00"}
    scheduler.state.since("eval", tick - timedelta(seconds=1))
    scheduler.state.start("eval", tick, 1, mark)
    (start,) = scheduler.begin(now)
    assert (start.tick, start.number) == (tick, 2)
