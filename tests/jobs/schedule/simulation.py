"""A simulated schedule: a clock moved by hand, commands that take no time, and machines that go down and come back."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from jobs.checkpoints import weights_hash
from jobs.config.load import load_config
from jobs.config.schedule import ScheduleConfig
from jobs.evaluate import truth_hash
from jobs.schedule.scheduler import Scheduler, Start, run_start
from model.categories import Category
from model.checkpoint import save_checkpoint
from model.network import build_model
from model.spec import ModelSpec
from pipeline.bulk.corpus import plan_corpus
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.metrics import Metrics
from pipeline.manifest import RUN_KEY, sha256_of, to_json
from pipeline.results.history import append_history
from pipeline.run_spec import InputSpec
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import absolute_uri
from tests.pipeline.made_run import SPEC as RUN_SPEC

SPEC = ModelSpec.tiny(1, fpn_channels=8, box_head_channels=8, mask_head_channels=(8,), mask_deconv_channels=8)


def at(text: str) -> datetime:
    """The time of an ISO string, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def write_checkpoint(training: Path, step: int) -> None:
    """Writes a complete checkpoint of a tiny network; its weights follow from `step`."""
    torch.manual_seed(step)
    folder = training / f"checkpoints/step-{step:08d}"
    save_checkpoint(folder, model=build_model(SPEC), spec=SPEC, categories=[Category(1, "a")], progress={"step": step})


def make_config(drawn: Path, models: Path, root: Path, **task: Any) -> ScheduleConfig:
    """A schedule with one hourly evaluation of `models` on the two drawn data sets; `task` changes its settings."""
    data = [
        {"name": f"set{seed}", "images": str(drawn / f"{seed}/val"), "ground_truth": str(drawn / f"{seed}/val.json")}
        for seed in (1, 2)
    ]
    section = {"models": [str(models)], "data": data, "history": str(root / "history")}
    section["run_uri"] = str(root / "runs/{date}-{model}-{data}")
    tasks = [{"name": "eval", "cron": "0 * * * *", "evaluate": section, "retry_wait_s": 0} | task]
    values = {"schedule": {"state": str(root / "state"), "late_s": 900}, "tasks": tasks}
    return load_config(ScheduleConfig, None, [], base=values)


def plan_run(uri: str, given: dict[str, Any]) -> None:
    """Writes what a bulk run writes first, its specification and its plan: the images that it will segment."""
    source = InputSpec(uri=absolute_uri(given["uri"]), since_run=given.get("since_run"))
    storage = open_storage(uri)
    storage.write_bytes(RUN_KEY, to_json(RUN_SPEC | {"input": asdict(source)}))
    plan_corpus(storage, source, shard_size=None, num_workers=1)


class World:
    """A clock moved by hand, and a Runner whose commands take no time: it writes what they would write."""

    def __init__(self, now: str, metrics: Metrics) -> None:
        self.now = at(now)
        self.metrics = metrics
        self.runs: dict[str, dict[str, Any]] = {}
        self.evaluated: Counter[tuple[str, str]] = Counter()
        self.bad_models: set[str] = set()
        self.num_to_fail = 0
        self.events: list[tuple[datetime, int, Callable[[], object]]] = []
        self.numbers = itertools.count()

    def run(self, args: list[str], timeout_s: float) -> tuple[int, str]:
        command, _, file = args
        settings = yaml.safe_load(Path(file).read_text())
        if self.num_to_fail:
            self.num_to_fail -= 1
            return 1, "OSError: the network is down"
        if command == "segment":
            self.runs[settings["output"]["uri"]] = settings
            plan_run(settings["output"]["uri"], settings["input"])
            return 0, ""
        run = self.runs[settings["run"]["uri"]]
        model = weights_hash(run["model"]["checkpoint"])
        truth = truth_hash(AnnotationSource(uri=settings["ground_truth"]["uri"]))
        self.evaluated[model, settings["ground_truth"]["uri"]] += 1
        append_history(
            settings["history"]["uri"],
            self.metrics,
            when=self.now,
            run_id=sha256_of(to_json(run))[:16],
            model_sha256=model,
            truth_sha256=truth,
            config_sha256=sha256_of(to_json(settings)),
            label=settings["history"]["label"],
        )
        return (4, "gate failed: segm AP 0.1 is below 0.3") if model in self.bad_models else (0, "")

    def wait(self, seconds: float) -> None:
        pass

    def stop(self) -> None:
        pass

    def later(self, when: datetime, action: Callable[[], object]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), action))

    def play(self, until: datetime) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, action = heapq.heappop(self.events)
            action()
        self.now = until


class Machine:
    """A machine whose scheduler looks for ticks every ten minutes; it may go down, also while a tick runs."""

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
                self.world.later(self.world.now + self.duration(start), partial(self.work, start, life))
        self.world.later(self.world.now + timedelta(minutes=10), self.look)

    def work(self, start: Start, life: int) -> None:
        if life == self.life:  # else the machine went down meanwhile
            run_start(self.scheduler, start, self.world, lambda: self.world.now)

    def down(self) -> None:
        self.is_up, self.life = False, self.life + 1

    def up(self) -> None:
        self.is_up = True


def records_of(scheduler: Scheduler, task: str = "eval") -> dict[datetime, dict[str, Any]]:
    """The final record of each tick that has one."""
    ticks = scheduler.state.ticks(task, at("2000-01-01T00:00:00"))
    return {tick: state.done for tick, state in ticks.items() if state.done is not None}
