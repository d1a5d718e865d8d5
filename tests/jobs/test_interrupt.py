"""Ctrl-C, SIGTERM and the end of a terminal, sent to real processes: what they say, leave, and how soon they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.home import HOME
from jobs.terminal import Exit
from jobs.training.output import TrainingOutput
from pipeline.dataset.shapes import draw_shapes
from tests.chaos.runs import check_exact, commits_of, descendants, finish, send, wait_until, words_of
from tests.specs import small_spec

PROGRAM = """
import multiprocessing, sys, time
from jobs import interrupt

def sleep():
    time.sleep(60)

if __name__ == "__main__":
    interrupt.END_S = float(sys.argv[2])
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

    environment = {**os.environ, "PYTHONPATH": str(HOME)}
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
    tmp_path: Path, clean_up_s: float, end_s: float = 9, ignored: tuple[signal.Signals, ...] = ()
) -> tuple[subprocess.Popen[str], int]:
    """A program that sleeps, and cleans up for some seconds once interrupted; with the id of its child."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    process = begin([sys.executable, str(file), str(clean_up_s), str(end_s)], ignored)
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


@pytest.mark.long
@pytest.mark.parametrize(("number", "is_to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_segment_keeps_what_is_committed_and_leaves_no_process(
    number: signal.Signals, is_to_group: bool, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    words = words_of(tiny_checkpoint, photos, tmp_path / "out", "cluster.num_cpus=2")
    process = begin_command("segment", *words)
    assert wait_until(lambda: len(commits_of(tmp_path / "out")) >= 2, process)
    lines, took_s = end_and_look(process, number, is_to_group=is_to_group)
    assert DOING in lines and lines[-1] == f"maskfleet: interrupted: {GO_ON}"
    assert took_s < 10
    kept = {path: path.read_bytes() for path in commits_of(tmp_path / "out")}
    assert len(kept) >= 2 and not (tmp_path / "out" / "final.json").exists()
    finish(begin_command("segment", *words))
    assert {path: path.read_bytes() for path in kept} == kept
    finish(begin_command("segment", *words_of(tiny_checkpoint, photos, tmp_path / "whole", "cluster.num_cpus=2")))
    check_exact(tmp_path / "out", tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(("number", "is_to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_training_writes_a_checkpoint_first_and_goes_on_after_it(
    number: signal.Signals, is_to_group: bool, tmp_path: Path
) -> None:
    draw_shapes(str(tmp_path / "data"), num_train=8, num_val=2, num_unlabelled=0)
    out = tmp_path / "out"
    words = ["--config", "tiny_cpu", f"data.train={tmp_path / 'data' / 'train.json'}", f"output.uri={out}"]
    words += ["cluster.num_cpus=2", "train.max_steps=4000", "train.log_every_steps=1", "train.data_workers=1"]
    process = begin_command("train", *words, "train.checkpoint_every_steps=4000")
    lines, _ = end_and_look_after(process, lambda line: "train: step " in line, number, is_to_group)
    assert any("a checkpoint is written first" in line for line in lines)
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    go_on = f"the checkpoint of step {step} is kept; run the same command again to go on"
    assert lines[-1] == f"maskfleet: interrupted: {go_on}"
    again = begin_command("train", *words, "train.checkpoint_every_steps=4000")
    lines, _ = end_and_look_after(again, lambda line: "going on after step" in line, signal.SIGTERM, False)
    assert any(f"going on after step {step} of 4000" in line for line in lines)


def end_and_look_after(
    process: subprocess.Popen[str], is_awaited: Callable[[str], bool], number: signal.Signals, is_to_group: bool
) -> tuple[list[str], float]:
    """As `end_and_look`, once the command has written a line; the lines are all of them."""
    assert process.stdout is not None
    seen = [process.stdout.readline()]
    while not is_awaited(seen[-1]):
        assert seen[-1], "".join(seen)
        seen.append(process.stdout.readline())
    lines, took_s = end_and_look(process, number, is_to_group=is_to_group)
    return [*(line.rstrip() for line in seen), *lines], took_s


@pytest.mark.long
@pytest.mark.parametrize(("number", "is_to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_sweep_goes_on_from_the_checkpoints_of_its_trainings(
    number: signal.Signals, is_to_group: bool, tmp_path: Path
) -> None:
    train = {"max_steps": 60, "batch_size": 1, "data_workers": 0, "cpus_per_worker": 1, "validate_every_steps": 60}
    train |= {"checkpoint_every_steps": 5, "log_every_steps": 1}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": {"spec": small_spec().to_dict()}, "train": train}))
    words = [f"sweep.base={tmp_path / 'base.yaml'}", "sweep.seeds=[0,1]", "cluster.num_cpus=2", "draw.num_train=3"]
    words += ["draw.num_val=1", "draw.image_size=[48,64]", "draw.max_shapes=2", f"output.uri={tmp_path / 'out'}"]
    process = begin_command("sweep", *words)
    assert wait_until(lambda: len(list(tmp_path.glob("out/trials/*/checkpoints/*/checkpoint.json"))) >= 2, process)
    lines, took_s = end_and_look(process, number, is_to_group=is_to_group)
    assert "maskfleet: interrupted: trainings under way are ended; again ends it at once" in lines
    assert lines[-1] == "maskfleet: interrupted: run the same command again to go on from their newest checkpoints"
    assert took_s < 10 and not list(tmp_path.glob("out/trials/*/finished.json"))
    output = finish(begin_command("sweep", *words))
    assert "2 of 2 trainings" in output
    for trial in (tmp_path / "out" / "trials").iterdir():
        rows = TrainingOutput(str(trial)).read_metrics()
        assert [row["step"] for row in rows] == list(range(1, 61)), "each step once"


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
