"""Trainings as separate programs that can be killed and compared: `python -m tests.chaos.trainings CONFIG EVENTS`.

The program writes its events to the file EVENTS, one JSON object a line: its stdout also holds what Ray prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from jobs.config.load import load_config, to_plain, to_yaml
from jobs.config.train import TrainConfig
from jobs.training.events import TrainEvent
from jobs.training.loop import TrainingRun, Worker
from jobs.training.output import TrainingOutput
from jobs.training.train import prepare_train, run_train
from tests.paths import ROOT
from tests.specs import small_spec

SPEC = small_spec(channels=16, sides=(64, 80))


def settings(data: Path, output: Path, *, address: str | None = None, **train: Any) -> TrainConfig:
    """A deterministic training of two workers with one image each, with a row of metrics for every step."""
    values: dict[str, Any] = {"max_steps": 60, "batch_size": 1, "num_workers": 2, "data_workers": 0}
    values |= {
        "cpus_per_worker": 1,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "checkpoint_every_steps": 4,
        "log_every_steps": 1,
    }
    return TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {"train": str(data / "train.json")},
            "train": values | train,
            "output": {"uri": str(output)},
            "cluster": {"num_cpus": 2, "num_gpus": 0} if address is None else {"address": address},
        }
    )


def train_undisturbed(config: TrainConfig) -> None:
    """The same training without Ray and without faults, in processes of its own."""
    world_size = config.train.num_workers
    spawn(_train_rank, args=(to_plain(config), world_size), nprocs=world_size)


def _train_rank(rank: int, values: dict[str, Any], world_size: int) -> None:
    torch.set_num_threads(1)  # as cpus_per_worker: the order of sums is part of the result
    rendezvous = f"file://{values['output']['uri']}.meet"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    worker = Worker(rank=rank, world_size=world_size, local_world_size=world_size, device=torch.device("cpu"))
    TrainingRun(TrainConfig.model_validate(values), worker, lambda kind, sentence, **values: None).run()
    torch.distributed.destroy_process_group()


class TrainingProgram:
    """A running training and its events."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        self._events = folder / "events.jsonl"
        self._num_read = 0
        self._pids: dict[int, int] = {}
        self.num_starts = 0
        self._events.write_text("")
        (folder / "train.yaml").write_text(to_yaml(config))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.trainings", str(folder / "train.yaml"), str(self._events)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events written since the last call."""
        content = self._events.read_bytes()
        end = content.rfind(b"\n") + 1
        lines = content[self._num_read : end].splitlines()
        self._num_read = end
        for line in lines:
            event = json.loads(line)
            if event["kind"] == "started":
                self._pids[event["rank"]] = event["values"]["pid"]
                self.num_starts += event["rank"] == 0
            yield event

    def wait_for_step(self, step: int, timeout_s: float = 300) -> bool:
        """Waits until a step is done; False when the program ended first."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if any(event["kind"] == "step" and event["values"]["step"] >= step for event in self.new_events()):
                return True
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline_s, f"no step {step}: {self.log.read_text()}"
            time.sleep(0.02)

    def kill_rank(self, rank: int) -> None:
        """`kill -9` of a worker."""
        os.kill(self._pids[rank], signal.SIGKILL)

    def kill_driver(self) -> None:
        """`kill -9` of the program itself; its workers are left to Ray."""
        self.process.kill()
        self.process.wait()

    def finish(self, timeout_s: float = 400) -> None:
        """Waits for the program's end; its exit code must be 0."""
        code = self.process.wait(timeout_s)
        assert code == 0, self.log.read_text()
        list(self.new_events())


def check_same(output: Path, undisturbed: Path) -> None:
    """Checks that both trainings finished with bit-equal weights, the same progress and the same loss at every step."""
    newest = [TrainingOutput(str(folder)).load_newest() for folder in (output, undisturbed)]
    assert newest[0] is not None and newest[1] is not None
    (step, checkpoint), (expected_step, expected) = newest[0], newest[1]
    assert step == expected_step and checkpoint.progress == expected.progress and checkpoint.progress["finished"]
    assert checkpoint.sha256 == expected.sha256
    rows = [TrainingOutput(str(folder)).read_metrics() for folder in (output, undisturbed)]
    assert [(row["step"], row["loss"]) for row in rows[0]] == [(row["step"], row["loss"]) for row in rows[1]]


def main() -> None:
    """Trains by the configuration in argv[1] and writes each event as one line to the file argv[2]."""
    config = load_config(TrainConfig, sys.argv[1])
    with open(sys.argv[2], "a") as events:

        def write(event: TrainEvent) -> None:
            line = {"kind": event.kind, "rank": event.rank, "message": event.message, "values": dict(event.values)}
            events.write(json.dumps(line) + "\n")
            events.flush()

        run_train(prepare_train(config), on_progress=write)


if __name__ == "__main__":
    main()
