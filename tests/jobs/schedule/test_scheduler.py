"""The schedule: its clockwork through a simulated week, its policies one by one, and its steps as real programs."""

from __future__ import annotations

import heapq
import http.server
import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from jobs.config.load import ConfigError, load_config
from jobs.config.schedule import ScheduleConfig
from jobs.evaluate import load_truth
from jobs.schedule.scheduler import Ended, Scheduler, Start, iter_ticks, last_tick, run_start
from jobs.schedule.tasks import Programs, Stopped, fill_template, last_run, weights_hash
from model.categories import Category
from model.checkpoint import save_checkpoint
from model.network import build_model
from model.spec import ModelSpec
from pipeline.dataset.shapes import draw_shapes
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import Metrics, evaluate_run
from pipeline.manifest import sha256_of, to_json
from pipeline.results.history import append_history, load_history

SPEC = ModelSpec.tiny(1, fpn_channels=8, box_head_channels=8, mask_head_channels=(8,), mask_deconv_channels=8)
BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def write_checkpoint(training: Path, step: int) -> None:
    torch.manual_seed(step)
    folder = training / f"checkpoints/step-{step:08d}"
    save_checkpoint(folder, model=build_model(SPEC), spec=SPEC, categories=[Category(1, "a")], progress={"step": step})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for seed in (1, 2):
        draw_shapes(str(folder / str(seed)), num_train=0, num_val=2, num_unlabelled=0, seed=seed)
    return folder


@pytest.fixture(scope="module")
def metrics(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """Figures of a run made by hand."""
    from tests.pipeline.made_run import image_row, write_run

    truth = Truth.load(str(drawn / "1/val.json"))
    names = [image["file_name"] for image in truth.content["images"]]
    rows = [image_row(name, name, "ok", (64, 64), 0, 0) for name in names]
    folder = write_run(tmp_path_factory.mktemp("made") / "run", [(rows, [])])
    return evaluate_run(str(folder), truth)


def make_config(drawn: Path, models: Path, root: Path, **task: Any) -> ScheduleConfig:
    data = [
        {"name": f"set{seed}", "images": str(drawn / f"{seed}/val"), "ground_truth": str(drawn / f"{seed}/val.json")}
        for seed in (1, 2)
    ]
    section = {"models": [str(models)], "data": data, "history": str(root / "history")}
    section["run_uri"] = str(root / "runs/{date}-{model}-{data}")
    tasks = [{"name": "eval", "cron": "0 * * * *", "evaluate": section, "retry_wait_s": 0} | task]
    values = {"schedule": {"state": str(root / "state"), "late_s": 900}, "tasks": tasks}
    return load_config(ScheduleConfig, None, [], base=values)


class World:
    """A clock that is moved by hand, and commands that take no time: what they would write is written."""

    def __init__(self, now: str, metrics: Metrics) -> None:
        self.now = at(now)
        self.metrics = metrics
        self.runs: dict[str, dict[str, Any]] = {}
        self.evaluated: Counter[tuple[str, str]] = Counter()
        self.bad_models: set[str] = set()
        self.num_to_fail = 0
        self.events: list[tuple[datetime, int, Callable[[], None]]] = []
        self.numbers = itertools.count()

    def run(self, args: list[str], timeout_s: float) -> tuple[int, str]:
        command, _, file = args
        settings = yaml.safe_load(Path(file).read_text())
        if self.num_to_fail:
            self.num_to_fail -= 1
            return 1, "OSError: the network is down"
        if command == "segment":
            self.runs[settings["output"]["uri"]] = settings
            return 0, ""
        run = self.runs[settings["run"]["uri"]]
        model = weights_hash(run["model"]["checkpoint"])
        truth = load_truth(settings["ground_truth"]["uri"], "auto", None, "object")
        self.evaluated[model, settings["ground_truth"]["uri"]] += 1
        append_history(
            settings["history"]["uri"],
            self.metrics,
            when=self.now,
            run_id=sha256_of(to_json(run))[:16],
            model_sha256=model,
            truth_sha256=sha256_of(to_json(truth.content)),
            config_sha256=sha256_of(to_json(settings)),
            label=settings["history"]["label"],
        )
        return (4, "gate failed: segm AP 0.1 is below 0.3") if model in self.bad_models else (0, "")

    def wait(self, seconds: float) -> None:
        pass

    def stop(self) -> None:
        pass

    def later(self, when: datetime, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what))

    def play(self, until: datetime) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until


class Machine:
    """A scheduler on a machine that looks every ten minutes, may be down, and may die while it works."""

    def __init__(self, world: World, config: ScheduleConfig, offset: timedelta, duration: Callable[[Start], timedelta]):
        self.world, self.config, self.duration = world, config, duration
        self.said: list[str] = []
        self.life = 0
        self.is_up = True
        self.scheduler = Scheduler(config, self.said.append)
        world.later(world.now + offset, self.look)

    def look(self) -> None:
        if self.is_up:
            for start in self.scheduler.begin(self.world.now):
                life = self.life
                self.world.later(self.world.now + self.duration(start), lambda s=start, n=life: self.work(s, n))
        self.world.later(self.world.now + timedelta(minutes=10), self.look)

    def work(self, start: Start, life: int) -> None:
        if life == self.life:  # else it died meanwhile
            run_start(self.scheduler, start, self.world, lambda: self.world.now)

    def down(self) -> None:
        self.is_up, self.life = False, self.life + 1

    def up(self) -> None:
        self.is_up = True


def records_of(scheduler: Scheduler, task: str = "eval") -> dict[datetime, dict[str, Any]]:
    ticks = scheduler.state.ticks(task, at("2000-01-01T00:00:00"))
    return {tick: state.done for tick, state in ticks.items() if state.done is not None}


def history_pairs(history: str) -> pd.DataFrame:
    frame = load_history(history)
    return frame.drop_duplicates("evaluation_id")[["evaluation_id", "model_sha256", "truth_sha256"]]


def test_a_week_with_two_schedulers_deaths_missed_ticks_and_a_failing_gate(
    drawn: Path, metrics: Metrics, tmp_path: Path
) -> None:
    models = tmp_path / "models/r50"
    told = tmp_path / "told"
    told.mkdir()
    config = make_config(drawn, models, tmp_path, cron="0 */6 * * *", timezone=BERLIN, timeout_s=3 * 3600, retries=1)
    command = [sys.executable, "-c", f"import sys,uuid; open(r'{told}/'+uuid.uuid4().hex,'w').write(sys.stdin.read())"]
    config = config.model_copy(update={"on_failure": config.on_failure.model_copy(update={"command": tuple(command)})})
    # The week in which Germany's clocks go back.
    start, end = at("2026-10-22T00:05:00"), at("2026-10-29T00:05:00")
    world = World("2026-10-22T00:05:00", metrics)
    write_checkpoint(models, 1)

    def duration(start: Start) -> timedelta:
        return timedelta(hours=7 if start.tick == at("2026-10-23T10:00:00") else 1)

    machines = [Machine(world, config, timedelta(minutes=offset), duration) for offset in (0, 3)]
    for day in range(1, 7):  # a new checkpoint each day
        world.later(start + timedelta(days=day), lambda step=day + 1: write_checkpoint(models, step))
    bad_step = 3
    bad = f"{models}/checkpoints/step-{bad_step:08d}"
    world.later(at("2026-10-24T00:06:00"), lambda: world.bad_models.add(weights_hash(bad)))
    world.later(at("2026-10-25T05:30:00"), lambda: [machine.down() for machine in machines])  # both die at work
    world.later(at("2026-10-26T02:10:00"), lambda: [machine.up() for machine in machines])
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
    tellings = [json.loads(path.read_text()) for path in told.iterdir()]
    assert [telling["outcome"] for telling in tellings] == ["gate_failed"]
    assert f"step-{bad_step:08d}" in tellings[0]["reason"] and "segm AP 0.1" in tellings[0]["reason"]


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


def test_a_failed_tick_is_tried_again_and_told_once(drawn: Path, metrics: Metrics, tmp_path: Path) -> None:
    heard: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
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
    (told,) = [json.loads(body) for body in heard]
    assert told["outcome"] == "failed" and "the network is down (try 2 of 2)" in told["reason"]
    assert "secret-path" not in "".join(said) + repr(config)


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


def test_cron_in_a_zone_whose_clocks_change() -> None:
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(BERLIN)
    nights = list(iter_ticks("30 2 * * *", zone, at("2026-03-27T12:00:00"), at("2026-03-30T12:00:00")))
    assert len(nights) == 3  # 02:30 does not exist on the 29th, and the tick is not lost
    autumn = list(iter_ticks("30 2 * * *", zone, at("2026-10-24T12:00:00"), at("2026-10-25T12:00:00")))
    assert len(autumn) == 1  # 02:30 is there twice, and runs once
    assert last_tick("* * * * *", zone, at("2026-03-01T10:00:00")) == at("2026-03-01T10:00:00")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cron": "61 * * * *"}, "tasks.0.cron: '61 * * * *' is not allowed"),
        ({"timezone": "Berlin"}, "tasks.0.timezone: 'Berlin' is not allowed: no such time zone"),
        ({"segment": None, "evaluate": None}, "give one of evaluate and segment"),
        ({"overlap": "both"}, "tasks.0.overlap"),
        ({"name": "a/b"}, "tasks.0.name"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], sentence: str, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(drawn, tmp_path, tmp_path, **change)
    assert sentence in str(caught.value)


def test_wrong_templates_and_sections_are_named(drawn: Path, tmp_path: Path) -> None:
    good = json.loads(make_config(drawn, tmp_path, tmp_path).tasks[0].evaluate.model_dump_json())
    for change, sentence in (
        ({"run_uri": "runs/{user}"}, "{user} is not known; allowed are {date}"),
        ({"run_uri": "runs/{date}"}, "it must hold {model} and {data}"),
        ({"segment": {"segment": {"batch_size": 0}}}, "batch_size"),
        ({"evaluate": {"gate": {"min_app": 1}}}, "min_app"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_config(drawn, tmp_path, tmp_path, evaluate=good | change)
        assert sentence in str(caught.value), caught.value


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
