"""The check of a GPU, run on a CPU with small tensors, so that each of its parts runs; and its verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Bench, Report, pixels_that_differ, small_sizes
from model.inference.mask_rle import paste_runs
from tests.paths import ROOT

# What a machine with a GPU need not have. A module that is None in sys.modules cannot be imported.
ABSENT = ("ray", "numba", "pydantic", "openvino", "pyarrow", "pandas", "fsspec", "s3fs", "typer", "rich", "matplotlib")
PROGRAM = (
    f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); from benchmarks.gpu_check import main; sys.exit(main())"
)


def run_without_the_rest(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The record of a run in which the packages of ABSENT are missing."""
    command = [sys.executable, "-c", PROGRAM, *words, "--small", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "out.json").read_text())
    last_line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"figures"'))
    assert json.loads(last_line) == record and not record["failed"]
    return record


@pytest.mark.long
def test_it_needs_little_more_than_torch_and_says_what_it_skipped(tmp_path: Path) -> None:
    record = run_without_the_rest(tmp_path, "masks", "upload", "memory", "latency")
    assert record["figures"]["masks: their largest distance from the threshold"] <= 1e-6
    assert record["figures"]["latency, exact, 64 px: p50, ms"] > 0
    assert list(record["seconds"]) == ["masks", "upload", "memory", "latency"]
    skipped = [text.split(":")[0] for text in record["skipped"]]
    assert skipped[:3] == ["every figure of a GPU", "RLE strings as a bulk run writes them", "memory"]


@pytest.mark.long
def test_every_part_runs(tmp_path: Path) -> None:
    record = run_without_the_rest(tmp_path)
    assert list(record["seconds"]) == list(PARTS)
    for name in PARTS:
        named = [text for text in (*record["figures"], *record["skipped"]) if text.startswith(name)]
        assert named, f"{name} neither gives a figure nor says that it was skipped"


def bench() -> Bench:
    return Bench(torch.device("cpu"), small_sizes(), Report())


def test_a_figure_beyond_its_limit_a_part_that_raises_and_the_end_of_the_time_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add_figures(given: Bench) -> None:
        given.report.add("small enough", 1.0, at_most=2)
        given.report.add("too large", 3.0, at_most=2)
        given.report.add("no number", float("nan"), at_least=0)

    def fail(given: Bench) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setitem(PARTS, "masks", add_figures)
    monkeypatch.setitem(PARTS, "upload", fail)
    record = gpu_check.run(["masks", "upload"], bench())
    failures = ["too large is 3, not <= 2", "no number is nan, not >= 0", "upload: RuntimeError: CUDA error"]
    assert record["failed"] == failures
    late = gpu_check.run(["masks"], bench(), time_limit_s=-1)
    assert late["skipped"] == ["masks: -1 s have passed"] and not late["figures"]


def test_a_part_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "tea"])
    with pytest.raises(SystemExit) as refused:
        gpu_check.main()
    assert refused.value.code == 2 and "no part 'tea'; there are predictor, masks" in capsys.readouterr().err


def test_a_wrong_pixel_is_found_with_its_distance_from_the_threshold() -> None:
    """A mask of 0.9 everywhere, one pixel of which is left out."""
    masks, boxes = torch.full((1, 28, 28), 0.9), torch.tensor([[10.0, 10, 60, 50]])
    lengths, counts = paste_runs(masks, boxes, (64, 80), 0.5)
    assert pixels_that_differ(masks, boxes, (64, 80), (lengths, counts), 0.5) == (0, 0.0)
    column = len(lengths) // 4 * 2 + 1  # a run inside the mask
    parts = [lengths[column] // 2, 1, lengths[column] - lengths[column] // 2 - 1]
    wrong = np.concatenate([lengths[:column], parts, lengths[column + 1 :]])
    number, distance = pixels_that_differ(masks, boxes, (64, 80), (wrong, counts + 2), 0.5)
    assert number == 1 and distance == pytest.approx(0.4, abs=1e-6)
