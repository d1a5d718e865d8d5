"""Ctrl-C, SIGTERM and the end of a terminal, sent to real processes: what they say, leave, and how soon they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml

from jobs.home import HOME
from jobs.terminal import Exit
from jobs.training.output import TrainingOutput
from pipeline.dataset.shapes import draw_shapes
from tests.chaos.runs import MARK, Family, commits_of, descendants, finish, send, wait_until, words_of
from tests.specs import small_spec

PROGRAM = """
import multiprocessing, sys, time
from jobs import interrupt

def sleep():
    time.sleep(60)

if __name__ == "__main__":
    interrupt.END_S = float(sys.argv[2])
    if len(sys.argv) > 3:  # a busy machine: looking for what was started takes a while
        look = interrupt._open_descendants
        interrupt._open_descendants = lambda: (time.sleep(float(sys.argv[3])), look())[1]
    interrupts = interrupt.Interrupts("segment")
    interrupts.listen()
    child = multiprocessing.get_context("spawn").Process(target=sleep, daemon=True)
    child.start()
    try:
        try:
            print(child.pid, flush=True)
            sleep()
        finally:
            time.sleep(float(sys.argv[1]))
    except BaseException:
        interrupts.end()
"""
DOING = "maskfleet: interrupted: shards that are not committed are given up; again ends it at once"
GO_ON = "what is committed is kept; run the same command again to go on"


def begin(command: list[str], ignored: tuple[signal.Signals, ...] = ()) -> subprocess.Popen[str]:
    """Starts a process in a group of its own, whose signals do what they do in a terminal, save those ignored."""

    def as_in_a_terminal() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    environment = {**os.environ, "PYTHONPATH": str(HOME), MARK: uuid.uuid4().hex}
    return subprocess.Popen(
        command,
        env=environment,
        preexec_fn=as_in_a_terminal,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begin_program(
    tmp_path: Path, clean_up_s: float, end_s: float = 9, ignored: tuple[signal.Signals, ...] = (), *busy_s: float
) -> tuple[subprocess.Popen[str], int]:
    """A program that sleeps, and cleans up for some seconds once interrupted; with the id of its child."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    process = begin([sys.executable, str(file), str(clean_up_s), str(end_s), *map(str, busy_s)], ignored)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def begin_command(*words: str) -> subprocess.Popen[str]:
    """Starts `maskfleet WORDS`."""
    return begin([sys.executable, "-P", str(HOME / "maskfleet" / "__main__.py"), *words])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_says_what_is_done_and_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    process, child = begin_program(tmp_path, clean_up_s=0)
    process.send_signal(number)
    lines = finish(process, Exit.INTERRUPTED).splitlines()
    assert lines == [DOING, f"maskfleet: interrupted: {GO_ON}"]
    assert wait_until(lambda: not is_alive(child))


SWALLOWING = """
import time
from jobs import interrupt

class Slow:
    def __del__(self):
        time.sleep(60)

interrupts = interrupt.Interrupts("segment")
interrupts.listen()
slow = Slow()
print(0, flush=True)
try:
    del slow
    time.sleep(60)
except BaseException:
    interrupts.end()
"""


def test_an_interrupt_that_python_swallows_is_raised_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SWALLOWING)
    process = begin([sys.executable, str(tmp_path / "program.py")])
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process, Exit.INTERRUPTED).splitlines() == [DOING, f"maskfleet: interrupted: {GO_ON}"]
    assert time.monotonic() - began < 5, "it was ended by the last resort"


def test_one_signal_on_a_busy_machine_is_one(tmp_path: Path) -> None:
    process, _ = begin_program(tmp_path, 0, 9, (), 0.5)
    process.send_signal(signal.SIGINT)
    assert finish(process, Exit.INTERRUPTED).splitlines() == [DOING, f"maskfleet: interrupted: {GO_ON}"]


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    process, child = begin_program(tmp_path, clean_up_s=60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    lines = finish(process, Exit.INTERRUPTED).splitlines()
    assert lines == [DOING, f"maskfleet: interrupted: ended at once; {GO_ON}"]
    assert wait_until(lambda: not is_alive(child))


def test_one_request_that_arrives_twice_is_one(tmp_path: Path) -> None:
    process, _ = begin_program(tmp_path, clean_up_s=0.5)
    for number in (signal.SIGTERM, signal.SIGINT):  # to the process and to its group
        process.send_signal(number)
    assert finish(process, Exit.INTERRUPTED).splitlines()[-1] == f"maskfleet: interrupted: {GO_ON}"


def test_a_clean_up_that_does_not_end_is_ended(tmp_path: Path) -> None:
    process, child = begin_program(tmp_path, clean_up_s=60, end_s=0.5)
    process.send_signal(signal.SIGINT)
    assert finish(process, Exit.INTERRUPTED).splitlines()[-1] == f"maskfleet: interrupted: {GO_ON}"
    assert wait_until(lambda: not is_alive(child))


RELAY = '''
import os, subprocess, sys, time
from jobs import interrupt

# Each process of the relay starts the next one and ends soon after, so that none has its parent for long.
relay = """
import os, time
input()
until = time.monotonic() + 5
while time.monotonic() < until:
    time.sleep(0.02)
    if os.fork():
        time.sleep(0.2)
        break
"""
interrupts = interrupt.Interrupts("segment")
interrupts.listen()
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
runner = subprocess.Popen([sys.executable, "-c", relay], stdin=subprocess.PIPE, **quiet)
try:
    try:
        print(runner.pid, flush=True)
        time.sleep(60)
    finally:
        runner.communicate(b"go")
        time.sleep(0.2)
except BaseException:
    interrupts.end()
'''


def test_processes_that_start_others_while_all_are_ended_are_ended_too(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RELAY)
    process = begin([sys.executable, str(tmp_path / "program.py")])
    assert process.stdout is not None and process.stdout.readline()
    family = Family(process)
    process.send_signal(signal.SIGINT)
    assert finish(process, Exit.INTERRUPTED).splitlines() == [DOING, f"maskfleet: interrupted: {GO_ON}"]
    assert not family.left_after(0.5)


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(tmp_path: Path) -> None:
    process, _ = begin_program(tmp_path, clean_up_s=0, ignored=(signal.SIGHUP,))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    finish(process, Exit.INTERRUPTED)


def end_and_look(
    process: subprocess.Popen[str], number: signal.Signals, *, is_to_group: bool
) -> tuple[list[str], float]:
    """Signals a command; returns its lines and the seconds until its end. None of its processes may be left."""
    started = [process.pid, *descendants(process.pid)]
    began = time.monotonic()
    try:
        (os.killpg if is_to_group else os.kill)(process.pid, number)
        lines = finish(process, Exit.INTERRUPTED).splitlines()
        took_s = time.monotonic() - began
        assert len(started) > 5
        assert wait_until(lambda: not any(map(is_alive, started)), timeout_s=10)
    finally:
        send(started, signal.SIGKILL)
    return lines, took_s


KINDS = [(signal.SIGINT, True), (signal.SIGTERM, False)]
"""Signals of a terminal, to the group, and of a supervisor, to the process."""


@pytest.mark.long
def test_an_interrupted_segment_keeps_what_is_committed_and_leaves_no_process(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    """Twice; that the run then ends exact is tested in tests/chaos/test_interrupts.py."""
    words = words_of(tiny_checkpoint, photos, tmp_path / "out", "cluster.num_cpus=2")
    kept: dict[Path, bytes] = {}
    for number, is_to_group in KINDS:
        process = begin_command("segment", *words)
        least = len(kept) + 2

        def has_committed(least: int = least) -> bool:
            return len(commits_of(tmp_path / "out")) >= least

        assert wait_until(has_committed, process)
        lines, took_s = end_and_look(process, number, is_to_group=is_to_group)
        assert DOING in lines and lines[-1] == f"maskfleet: interrupted: {GO_ON}"
        assert took_s < 10
        assert {path: path.read_bytes() for path in kept} == kept
        kept = {path: path.read_bytes() for path in commits_of(tmp_path / "out")}
        assert len(kept) >= least and not (tmp_path / "out" / "final.json").exists()


@pytest.mark.long
def test_an_interrupted_training_writes_a_checkpoint_first_and_goes_on_after_it(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "data"), num_train=8, num_val=2, num_unlabelled=0)
    out = tmp_path / "out"
    words = ["--config", "tiny_cpu", f"data.train={tmp_path / 'data' / 'train.json'}", f"output.uri={out}"]
    words += ["cluster.num_cpus=2", "train.max_steps=4000", "train.log_every_steps=1", "train.data_workers=1"]
    step = 0
    for number, is_to_group in KINDS:
        process = begin_command("train", *words, "train.checkpoint_every_steps=4000")
        assert process.stdout is not None
        seen = [process.stdout.readline()]
        while "train: step " not in seen[-1]:
            assert seen[-1], "".join(seen)
            seen.append(process.stdout.readline())
        assert not step or any(f"going on after step {step} of 4000" in line for line in seen)
        lines, _ = end_and_look(process, number, is_to_group=is_to_group)
        assert any("a checkpoint is written first" in line for line in lines)
        before, step = step, max(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())
        assert step > before
        go_on = f"the checkpoint of step {step} is kept; run the same command again to go on"
        assert lines[-1] == f"maskfleet: interrupted: {go_on}"


@pytest.mark.long
def test_an_interrupted_sweep_goes_on_from_the_checkpoints_of_its_trainings(tmp_path: Path) -> None:
    train = {"max_steps": 60, "batch_size": 1, "data_workers": 0, "cpus_per_worker": 1, "validate_every_steps": 60}
    train |= {"checkpoint_every_steps": 5, "log_every_steps": 1}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": {"spec": small_spec().to_dict()}, "train": train}))
    words = [f"sweep.base={tmp_path / 'base.yaml'}", "sweep.seeds=[0,1]", "cluster.num_cpus=2", "draw.num_train=3"]
    words += ["draw.num_val=1", "draw.image_size=[48,64]", "draw.max_shapes=2", f"output.uri={tmp_path / 'out'}"]
    process = begin_command("sweep", *words)
    assert wait_until(lambda: len(list(tmp_path.glob("out/trials/*/checkpoints/*/checkpoint.json"))) >= 2, process)
    lines, took_s = end_and_look(process, signal.SIGINT, is_to_group=True)
    assert "maskfleet: interrupted: trainings under way are ended; again ends it at once" in lines
    assert lines[-1] == "maskfleet: interrupted: run the same command again to go on from their newest checkpoints"
    assert took_s < 10 and not list(tmp_path.glob("out/trials/*/finished.json"))
    output = finish(begin_command("sweep", *words))
    assert "2 of 2 trainings" in output
    for trial in (tmp_path / "out" / "trials").iterdir():
        rows = TrainingOutput(str(trial)).read_metrics()
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 61)), "each step once"


@pytest.mark.long
def test_an_interrupted_scheduler_ends_its_commands(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    settings = f"""
schedule: {{state: {tmp_path / "state"}, poll_s: 0.2}}
tasks:
  - name: photos
    cron: "* * * * *"
    segment: {{checkpoint: {tiny_checkpoint}, images: {photos}, output_uri: "{tmp_path}/runs/{{date}}-{{time}}",
              segment: {{corpus: {{shard_size: 3}}, segment: {{cpus_per_worker: 1}}, cluster: {{num_cpus: 2}}}}}}
"""
    (tmp_path / "schedule.yaml").write_text(settings)
    process = begin_command("schedule", "--config", str(tmp_path / "schedule.yaml"))
    assert wait_until(lambda: bool(list(tmp_path.glob("runs/*/commits/*/*.json"))), process)
    lines, took_s = end_and_look(process, signal.SIGINT, is_to_group=True)
    assert lines[-1] == "maskfleet: interrupted: start it again to go on"
    assert any(f"segment: maskfleet: interrupted: {GO_ON}" in line for line in lines), lines
    assert took_s < 10
