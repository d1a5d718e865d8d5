"""The documents' code runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[3] / "docs"


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
