"""Tests of the benchmark runner: it lists every benchmark and writes a record of each."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as bench

HERE = Path(bench.__file__).parent
NEEDS_A_CHECKPOINT = {"bench_accuracy"}


def test_every_benchmark_runs_with_make_bench_and_is_in_the_readme() -> None:
    modules = {path.stem for path in HERE.glob("bench_*.py")} | {"gpu_check"}
    assert {entry.module for entry in bench.BENCHES.values()} == modules - NEEDS_A_CHECKPOINT
    modules_in_readme = set(re.findall(r"python -m benchmarks\.(\w+)", (HERE / "README.md").read_text()))
    assert modules_in_readme - {"draw_balloons"} == modules  # that one draws what a training starts from


def test_a_benchmark_writes_its_record_and_a_failed_one_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    few_images = ("--images", "20", "--runs", "1", "--children", "1")
    benches = {
        "decode": bench.Bench("bench_decode", few_images, (("ratio", 1e-6),)),
        "wrong": bench.Bench("bench_decode", ("--no-such-word",)),
    }
    monkeypatch.setattr(bench, "BENCHES", benches)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path)])
    assert bench.main() == 1
    assert "== wrong failed with exit code 2" in capfd.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode.json", "ratios.png", "tables.md"]
    record = json.loads((tmp_path / "decode.json").read_text())
    assert record["command"] == " ".join(["python -m benchmarks.bench_decode", *few_images])
    assert record["figures"]["plain_per_s"] > 0 and "cores" in record["machine"] and record["commit"]
    assert f"| ratio | {record['figures']['ratio']:,g} | 1e-06 |" in (tmp_path / "tables.md").read_text()


def test_an_unknown_name_is_an_error_that_lists_the_benchmarks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "tea"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "there is no benchmark 'tea'; there are rle, decode" in capsys.readouterr().err
