"""`maskfleet compare` on small finished runs: AP against ground truth, drift without it, and gates."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from jobs.terminal import Exit
from tests.jobs.drawn_runs import call


def test_compare_with_and_without_labels(runs: Path, tmp_path: Path) -> None:
    truth = runs / "data" / "val.json"
    words = ["compare", runs / "perfect", runs / "worse", "compare.num_resamples=20"]
    text = call(*words, f"ground_truth.uri={truth}", f"output.uri={tmp_path / 'c'}")
    assert "segm AP 1.0000 -> " in text and "worst images" in text
    assert len(pd.read_parquet(tmp_path / "c" / "images.parquet")) == 12
    text = call(*words, f"ground_truth.uri={truth}", "gate.max_drop=0.1", code=Exit.GATE)
    assert "gate.max_drop allows 0.1" in text
    text = call(*words, f"ground_truth.uri={truth}", "compare.iou_type=bbox")
    assert "bbox AP 1.0000 -> " in text
    assert "instances per image" in call(*words)
    assert "needs ground_truth.uri" in call(*words, "gate.max_drop=0.1", code=Exit.BAD_INPUT)


def test_images_that_a_run_lacks_are_said(runs: Path, tmp_path: Path) -> None:
    content = json.loads((runs / "data" / "val.json").read_text())
    image = {**content["images"][0], "id": 999, "file_name": "elsewhere.png"}
    content["images"].append(image)
    content["annotations"].append({**content["annotations"][0], "id": 9999, "image_id": 999})
    (tmp_path / "val.json").write_text(json.dumps(content))
    words = ["compare", runs / "perfect", runs / "worse", "compare.num_resamples=0"]
    words += [f"ground_truth.uri={tmp_path / 'val.json'}", f"output.uri={tmp_path / 'c'}"]
    text = " ".join(call(*words).split())
    assert "note: run a lacks 1 of 13 images of the ground truth (elsewhere.png); only images that both" in text
    assert "segm AP 1.0000" in text
    written = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert written["missing_a"] == written["missing_b"] == ["elsewhere.png"]
    assert "segm AP 1.0000" not in " ".join(call(*words, "compare.only_common=false").split())
