"""`maskfleet compare` on small finished runs: AP against ground truth, drift without it, and gates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from jobs.terminal import Exit
from tests.jobs.drawn_runs import call


def test_compare_with_and_without_labels(runs: Path, tmp_path: Path) -> None:
    truth = runs / "data" / "val.json"
    words = ["compare", runs / "perfect", runs / "worse", "compare.num_resamples=20"]
    text = call(*words, "--ground-truth", truth, f"output.uri={tmp_path / 'c'}")
    assert "segm AP 1.0000 -> " in text and "worst images" in text
    assert len(pd.read_parquet(tmp_path / "c" / "images.parquet")) == 12
    text = call(*words, "--ground-truth", truth, "gate.max_drop=0.1", code=Exit.GATE)
    assert "gate.max_drop allows 0.1" in text
    text = call(*words, "--ground-truth", truth, "compare.iou_type=bbox")
    assert "bbox AP 1.0000 -> " in text
    assert "instances per image" in call(*words)
    assert "needs ground_truth.uri" in call(*words, "gate.max_drop=0.1", code=Exit.BAD_INPUT)
