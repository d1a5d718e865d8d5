"""The Python programs of README and docs run as they are printed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import detection

from pipeline.dataset.convert import convert_annotations
from pipeline.dataset.shapes import draw_shapes
from pipeline.predictors.answers import to_masked
from pipeline.run_spec import SegmentSpec
from tests.docs.pages import blocks_of
from tests.pipeline.made_run import DrawnRun, write_drawn_run
from tests.pipeline.nightly_runs import write_chain


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> DrawnRun:
    return write_drawn_run(tmp_path_factory.mktemp("drawn"))


def run_programs(page: str, *, at_least: int) -> dict[str, Any]:
    """Runs a page's programs one after the other in one namespace, and returns it."""
    programs = [block for block in blocks_of(page) if block.kind == "python"]
    assert len(programs) >= at_least
    namespace: dict[str, Any] = {}
    for program in programs:
        if "import polars" in program.text and importlib.util.find_spec("polars") is None:
            continue
        exec(compile(program.text, f"{page}, block in line {program.line}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", ["docs/queries.md", "docs/evaluation.md"])
def test_the_programs_of_queries_and_evaluation_run(
    page: str, drawn_run: DrawnRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    shutil.copytree(drawn_run.uri, tmp_path / "demo/run")
    shutil.copytree(drawn_run.uri, tmp_path / "demo/val_run")
    write_chain(tmp_path / "demo", 4, new=3, changed=3, deleted=1)
    (tmp_path / "demo/data").mkdir()
    (tmp_path / "demo/data/val.json").write_text(json.dumps(drawn_run.coco))
    monkeypatch.chdir(tmp_path)
    names = run_programs(page, at_least=4)
    if page == "docs/queries.md":
        assert len(names["circles"]) > 0
        want = names["per_class"].set_index("category")["instances"].to_dict()
        assert dict(zip(names["top"]["category"], names["top"]["n"], strict=True)) == want
        assert len(names["ids"]) == 4 and names["per_run"]["n"].sum() == len(names["objects"]) > 0
        assert names["of_each_run"]["len"].sum() == len(names["objects"]) and names["images_of_all"].equals(
            names["state"]
        )
        assert {path.name for path in (tmp_path / "export").iterdir()} == {"coco", "yolo", "to_correct", "png"}


def test_the_predictor_of_the_page_finds_colours() -> None:
    """tests/chaos/test_kill_and_resume.py runs it in a bulk run."""
    segmenter = run_programs("docs/predictors.md", at_least=1)["Colours"](min_share=0.2)
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 2] = 255
    image[:2, 10:, 0] = 255  # a tenth
    (answer,) = segmenter.predict([image])
    found = to_masked(answer, [category.name for category in segmenter.categories], (10, 20), SegmentSpec())
    assert found.labels.tolist() == [3] and found.boxes.tolist() == [[0, 0, 10, 10]] and found.areas.tolist() == [100]


@pytest.mark.long
def test_the_programs_of_readme_run(drawn_run: DrawnRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(drawn_run.uri, tmp_path / "masks/run1")
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "photo.jpg")
    weights = tmp_path / "torch/hub/checkpoints/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    weights.parent.mkdir(parents=True)
    torch.save(detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    names = run_programs("README.md", at_least=2)
    assert "found" in names and len(names["images"]) > 0


def test_the_programs_of_annotations_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_shapes(str(tmp_path / "drawn"), num_train=12, num_val=0, num_unlabelled=0)
    convert_annotations(str(tmp_path / "drawn/train.json"), str(tmp_path / "balloon/train"), target_format="via")
    monkeypatch.chdir(tmp_path)
    names = run_programs("docs/annotations.md", at_least=2)
    assert names["mask"].any() and len(names["part"]) == 10
