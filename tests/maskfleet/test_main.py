"""The program started in a folder whose modules have the names of ours and of Python's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.commands import CONFIGURED
from jobs.terminal import Exit
from maskfleet.__main__ import own_path
from pipeline.tables import load_images, load_instances
from tests.chaos.runs import as_in_a_terminal, is_listening, wait_until
from tests.paths import ROOT

PROGRAMS = ([str(Path(sys.executable).parent / "maskfleet")], [sys.executable, "-m", "maskfleet"])
NAMES = ("model", "pipeline", "jobs", "torch", "random", "numpy", "ray")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of modules that end whoever imports them."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py was imported')\n")
    return tmp_path


def run(program: list[str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if program[1:2] == ["-m"]:
        environment["PYTHONPATH"] = str(ROOT)  # an installation is found behind the current folder, and so is this
    return subprocess.run([*program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("program", PROGRAMS, ids=["maskfleet", "python -m maskfleet"])
@pytest.mark.parametrize("command", [*CONFIGURED, "submit", "jobs"])
def test_every_command_explains_itself_there(program: list[str], command: str, hostile: Path) -> None:
    done = run(program, hostile, command, "--help")
    assert done.returncode == 0 and f"maskfleet {command}" in done.stdout, done.stderr


@pytest.mark.long
def test_a_run_is_segmented_measured_and_shown_there(
    hostile: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ray's workers, decode children and the commands after them."""
    from pipeline.dataset.shapes import draw_shapes

    data = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(data), num_train=1, num_val=6, num_unlabelled=1, seed=0)
    os.symlink(data, hostile / "data")
    program = PROGRAMS[0]
    words = (f"model.checkpoint={tiny_checkpoint}", "input.uri=data/val", "output.uri=run", "cluster.num_cpus=2")
    for command in (
        ("segment", *words),
        ("verify", "run"),
        ("report", "run"),
        ("export", "run", "export.to=coco"),
        ("check-data", "data/val.json"),
    ):
        done = run(program, hostile, *command)
        assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert len(load_images(str(hostile / "run"))) == 6 and len(load_instances(str(hostile / "run"))) > 0


@pytest.mark.parametrize("program", PROGRAMS, ids=["maskfleet", "python -m maskfleet"])
@pytest.mark.parametrize("wait_s", [0, 0.1, 0.5, 2])
def test_an_interrupt_of_the_first_imports_ends_in_one_line(program: list[str], wait_s: float, tmp_path: Path) -> None:
    words = ["segment", "model.checkpoint=m", "input.uri=i", "output.uri=o"]
    process = subprocess.Popen(
        [*program, *words], cwd=tmp_path, preexec_fn=as_in_a_terminal, stderr=subprocess.PIPE, text=True
    )
    assert wait_until(lambda: is_listening(process), process)
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == Exit.BAD_INPUT:  # it was quicker
        assert wait_s and "is not a folder" in errors
        return
    assert process.returncode == Exit.INTERRUPTED, errors
    (line,) = (line for line in errors.splitlines() if not line.endswith("again ends it at once"))
    assert line.startswith("maskfleet: interrupted: ") and "run the same command again" in line


def test_the_current_folder_leaves_the_path_and_our_own_folder_comes_onto_it() -> None:
    assert own_path(["/user", "/lib", "", "/site"], "/user", "/home") == ["/lib", "/site", "/home"]
    assert own_path(["/user", "/lib", "/home", "/site"], "/user", "/home") == ["/lib", "/home", "/site"]
    assert own_path(["/home", "/lib"], "/home", "/home") == ["/lib", "/home"], "Python's own modules come first"
    assert own_path(["/lib"], "", "/home") == ["/lib", "/home"]


def test_a_folder_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    script = f"rm -r {tmp_path}; exec {PROGRAMS[0][0]} --version"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("maskfleet "), done.stderr


def test_the_current_folder_on_pythonpath_reaches_no_process_of_ours(hostile: Path) -> None:
    program = "import os, maskfleet.__main__ as program, sys; sys.argv = ['maskfleet', '--version']\n"
    program += "try:\n    program.main()\nexcept SystemExit:\n    print(repr(os.environ['PYTHONPATH']))\n"
    environment = {**os.environ, "PYTHONPATH": f"{hostile}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=hostile, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == repr(str(ROOT)), done.stderr


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["ray"] = None
{rest}
"""


def run_without_torch(rest: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", WITHOUT_TORCH.format(rest=rest), *words]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_a_smaller_installation_leaves_out_is_named_with_the_remedy() -> None:
    remedy = "needs torch, which is not installed here; install Maskfleet with its dependencies (no --no-deps)"
    main = "from maskfleet.__main__ import main; main()"
    done = run_without_torch(main, "predict", "photo.jpg", "model.checkpoint=coco")
    assert (done.returncode, done.stderr) == (2, f"maskfleet: predict {remedy}\n")
    done = run_without_torch("import maskfleet; maskfleet.load_predictor")
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: maskfleet.load_predictor {remedy}"
    done = run_without_torch(
        "sys.modules['jobs.predict'] = None; " + main, "predict", "photo.jpg", "model.checkpoint=a"
    )
    assert done.returncode == 1 and "jobs.predict" in done.stderr, "a module of our own that is missing is no remedy's"
