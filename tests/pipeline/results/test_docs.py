"""The documents' code runs as it stands there."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.paths import DOCS


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text("utf-8"), re.M | re.S)


def has_polars() -> bool:
    try:
        import polars  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("name", ["queries.md", "evaluation.md"])
def test_every_block_runs(name, drawn_run, tmp_path, monkeypatch):
    pytest.importorskip("duckdb")
    shutil.copytree(drawn_run.uri, tmp_path / "demo/run")
    shutil.copytree(drawn_run.uri, tmp_path / "demo/val_run")
    import json

    (tmp_path / "demo/data").mkdir()
    (tmp_path / "demo/data/val.json").write_text(json.dumps(drawn_run.coco))
    monkeypatch.chdir(tmp_path)
    assert len(blocks(name)) >= 4
    namespace: dict = {}
    for number, block in enumerate(blocks(name)):
        if "import polars" in block and not has_polars():
            continue
        exec(compile(block, f"{name}, block {number + 1}", "exec"), namespace)
    if name == "queries.md":
        assert len(namespace["circles"]) > 0
        want = namespace["per_class"].set_index("category")["instances"].to_dict()
        assert dict(zip(namespace["top"]["category"], namespace["top"]["n"], strict=True)) == want
        assert {path.name for path in (tmp_path / "export").iterdir()} == {"coco", "yolo", "labelme", "png"}


def test_the_programs_of_readme_and_annotations_run(drawn_run, tmp_path, monkeypatch):
    from pipeline.dataset.convert import convert_annotations
    from pipeline.dataset.shapes import draw_shapes

    shutil.copytree(drawn_run.uri, tmp_path / "masks/run1")
    draw_shapes(str(tmp_path / "drawn"), num_train=12, num_val=0, num_unlabelled=0)
    convert_annotations(str(tmp_path / "drawn/train.json"), str(tmp_path / "balloon/train"), target_format="via")
    monkeypatch.chdir(tmp_path)
    for name, least in (("../README.md", 1), ("annotations.md", 2)):
        assert len(blocks(name)) >= least
        namespace: dict = {}
        for number, block in enumerate(blocks(name)):
            exec(compile(block, f"{name}, block {number + 1}", "exec"), namespace)
    assert namespace["mask"].any() and len(namespace["part"]) == 10
