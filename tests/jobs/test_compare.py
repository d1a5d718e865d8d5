"""`maskfleet compare` on small finished runs: AP against ground truth, drift without it, gates, masks of SAM."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd

from jobs.terminal import Exit
from pipeline.run_spec import RefineSpec
from pipeline.tables import load_instances
from tests.jobs.drawn_runs import call, write_run


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


def test_output_holds_the_last_comparison_alone(runs: Path, tmp_path: Path) -> None:
    truth = f"ground_truth.uri={runs / 'data' / 'val.json'}"
    words = ["compare", runs / "perfect", runs / "worse", "compare.num_resamples=0", f"output.uri={tmp_path / 'c'}"]
    with_truth = {"comparison.json", "categories.parquet", "images.parquet", "figures.parquet"}
    for more, files in (((truth,), with_truth), ((), {"drift.parquet", "figures.parquet"}), ((truth,), with_truth)):
        call(*words, *more)
        assert {path.name for path in (tmp_path / "c").iterdir()} == files


def test_a_truth_of_boxes_is_measured_by_boxes(runs: Path, tmp_path: Path) -> None:
    content = json.loads((runs / "data" / "val.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    words = ["compare", runs / "perfect", runs / "worse", f"ground_truth.uri={tmp_path / 'boxes.json'}"]
    text = call(*words, code=Exit.BAD_INPUT)
    assert (
        "has a mask that can be used" in text and "compare.iou_type) needs; those it can be measured by: 'bbox'" in text
    )
    assert "bbox AP 1.0000 -> " in call(*words, "compare.iou_type=bbox", "compare.num_resamples=0")


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


def test_a_run_with_masks_of_sam_stands_beside_one_without(runs: Path, tmp_path: Path) -> None:
    truth = runs / "data" / "val.json"
    refine = RefineSpec(kind="sam", name="facebook/sam-vit-base", revision="ab" * 20, sha256="0123456789ab" + "c" * 52)
    write_run(runs / "data", tmp_path / "plain", drop_every=0, predict_s=0.5)
    write_run(runs / "data", tmp_path / "refined", drop_every=0, predict_s=1.5, shift_px=2, refine=refine)
    words = ["compare", tmp_path / "plain", tmp_path / "refined", "compare.num_resamples=0"]
    text = call(*words, f"ground_truth.uri={truth}", f"output.uri={tmp_path / 'c'}")
    assert "masks of run_b: made anew by SAM facebook/sam-vit-base 0123456789ab" in text and "run_a: made" not in text
    figures = pd.read_parquet(tmp_path / "c" / "figures.parquet").set_index("figure")
    assert figures.loc["predictor, seconds an image", ["run_a", "run_b", "ratio"]].tolist() == [0.5, 1.5, 3.0]
    assert figures.loc["instances", "ratio"] == figures.loc["segm AP", "run_a"] == 1
    assert figures.loc["mask IoU", "run_a"] == figures.loc["boundary IoU", "run_a"] == 1
    assert figures.loc["boundary IoU", "run_b"] < figures.loc["mask IoU", "run_b"] < 1
    assert figures.loc["segm AP", "run_b"] < 1 and figures.loc["mask as RLE, bytes", "run_a"] > 10
    written = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert written["masks"] == [None, "SAM facebook/sam-vit-base 0123456789ab"]
    assert written["mask_fit"]["num_fitted"] == written["mask_fit"]["num_objects"] == figures.loc["instances", "run_a"]
    (command,) = (line for line in text.splitlines() if line.startswith("side by side: maskfleet "))
    call(*shlex.split(command.removeprefix("side by side: maskfleet ")), f"output.uri={tmp_path / 'report.html'}")
    assert "made anew by SAM facebook/sam-vit-base 0123456789ab" in (tmp_path / "report.html").read_text()


def test_without_labels_runs_have_their_costs(runs: Path, tmp_path: Path) -> None:
    text = call("compare", runs / "perfect", runs / "worse", f"output.uri={tmp_path / 'c'}")
    figures = pd.read_parquet(tmp_path / "c" / "figures.parquet").set_index("figure")
    assert figures.index.tolist() == ["instances", "predictor, seconds an image", "mask, pixels", "mask as RLE, bytes"]
    assert figures.loc["predictor, seconds an image"].isna().all() and "made anew" not in text
    perfect = load_instances(str(runs / "perfect"))
    assert figures.loc["instances", "run_a"] == len(perfect)
    assert figures.loc["mask, pixels", "run_a"] == perfect["area_px"].mean()
    assert figures.loc["mask as RLE, bytes", "run_a"] == perfect["rle_counts"].str.len().mean()


def test_without_resamples_or_objects_nothing_is_said_of_chance(runs: Path, tmp_path: Path) -> None:
    words = ["compare", runs / "perfect", runs / "worse"]
    text = call(*words, f"ground_truth.uri={runs / 'data' / 'val.json'}", "compare.num_resamples=0")
    assert ", without an interval\n" in text and "resampling" not in text and "nan" not in text.split("by category")[0]
    content = json.loads((runs / "data" / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": []}))
    text = call(*words, f"ground_truth.uri={tmp_path / 'val.json'}", "compare.num_resamples=2")
    assert "segm AP cannot be measured: the ground truth has no object that counts\n" in text
    gates = ["gate.min_ap=0.1", "gate.max_drop=0.1"]
    words += [f"ground_truth.uri={tmp_path / 'val.json'}", "compare.num_resamples=0"]
    text = " ".join(call(*words, *gates, code=Exit.GATE).split())
    assert "gate failed: segm AP cannot be measured; gate.max_drop allows 0.1000" in text
    assert "gate failed: segm AP cannot be measured; gate.min_ap asks for 0.1000" in text


def test_of_several_runs_it_is_said_how_many_sam_made_the_masks_of(runs: Path, tmp_path: Path) -> None:
    refine = RefineSpec(kind="sam", name="o/sam", revision="ab" * 20, sha256="0123456789ab" + "c" * 52)
    write_run(runs / "data", tmp_path / "refined", drop_every=0, refine=refine)
    words = ["compare", runs / "perfect", tmp_path / "refined", f"output.uri={tmp_path / 'c'}"]
    text = call(*words, f'run_b.earlier=["{runs / "worse"}"]')
    assert "masks of run_b: made anew by SAM o/sam 0123456789ab in 1 of 2 runs\n" in text
    text = call("compare", runs / "perfect", runs / "worse", f'run_b.earlier=["{tmp_path / "refined"}"]')
    assert "masks of run_b: made anew by SAM o/sam 0123456789ab in 1 of 2 runs\n" in text
