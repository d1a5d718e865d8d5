"""Ctrl-C and SIGTERM at random moments of whole commands, then the same command again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.config.load import to_yaml
from jobs.terminal import Exit
from pipeline.dataset.shapes import draw_shapes
from tests.chaos.runs import Family, finish, is_listening, start_program, wait_until
from tests.chaos.trainings import check_same, settings, train_undisturbed
from tests.chaos.trials import local_trials

LONGEST_END_S = 10.0  # as docs/reliability.md promises
NUM_STEPS = 40


class Interrupter:
    """Interrupts programs; each must end in time, in words, and leave no process.

    Args:
        go_on: pattern of the last line, after 'maskfleet: interrupted: '.
        longest_s: seconds within which a program must end.

    Attributes:
        longest_end_s: the longest that one took to end.
    """

    def __init__(self, go_on: str, longest_s: float = LONGEST_END_S) -> None:
        self.go_on, self.longest_s = go_on, longest_s
        self.longest_end_s = 0.0

    def strike(self, process: subprocess.Popen[str], chance: random.Random) -> str:
        """Sends a signal as a terminal (to the group) or a supervisor (to the process) does; returns which."""
        if not wait_until(lambda: is_listening(process), process):
            finish(process)
            return ""
        family = Family(process)
        kind = chance.choice(["Ctrl-C", "Ctrl-C", "SIGTERM"])
        began = time.monotonic()
        if kind == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        output, _ = process.communicate(timeout=60)
        took_s = time.monotonic() - began
        assert wait_until(lambda: not family.alive(), timeout_s=10)
        assert "Traceback" not in output and "Exception ignored" not in output, output
        if process.returncode == Exit.DONE:
            return ""
        assert process.returncode == Exit.INTERRUPTED, output
        last = output.splitlines()[-1]
        assert re.fullmatch(f"maskfleet: interrupted: {self.go_on}", last), output
        assert took_s < self.longest_s, output
        self.longest_end_s = max(self.longest_end_s, took_s)
        return kind


@pytest.mark.parametrize(
    "num_interrupts", [pytest.param(4, marks=pytest.mark.long), pytest.param(30, marks=pytest.mark.slow)]
)
def test_interrupts_at_random_moments_of_segment(
    num_interrupts: int, tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    interrupter = Interrupter("(nothing was started|what is committed is kept); run the same command again.*")
    places = (tiny_checkpoint, photos, undisturbed, tmp_path)
    local_trials(num_interrupts, interrupter.strike, *places, any_time_share=0.5).run(num_interrupts)
    print(f"the longest end took {interrupter.longest_end_s:.1f} s")


@pytest.mark.slow
def test_interrupts_at_random_moments_of_a_training(tmp_path: Path) -> None:
    """Its workers write a checkpoint first, so that it ends with the weights of an undisturbed one."""
    draw_shapes(str(tmp_path), num_train=11, num_val=1, num_unlabelled=0, image_size=(64, 80), max_shapes=3)
    train_undisturbed(settings(tmp_path, tmp_path / "undisturbed", max_steps=NUM_STEPS))
    interrupter = Interrupter(".*run the same command again.*", longest_s=60)
    chance, num_interrupts = random.Random(8), 0
    for number in range(4):
        config = settings(tmp_path, tmp_path / str(number), max_steps=NUM_STEPS)
        (tmp_path / "train.yaml").write_text(to_yaml(config))
        while True:
            process = start_program("train", "--config", str(tmp_path / "train.yaml"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.random() * 25)
                break
            num_interrupts += bool(interrupter.strike(process, chance))
        finish(process)
        check_same(tmp_path / str(number), tmp_path / "undisturbed")
        print(f"training {number} is identical after {num_interrupts} interrupts in all", flush=True)
    print(f"the longest end took {interrupter.longest_end_s:.1f} s")
