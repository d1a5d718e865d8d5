"""`maskfleet check-data` and `convert` on drawn annotations."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.terminal import Exit
from tests.jobs.drawn_runs import call


def test_check_data_and_convert(runs: Path, tmp_path: Path) -> None:
    data = runs / "data" / "val.json"
    assert "12 images" in call("check-data", data)
    text = call("convert", data, tmp_path / "labelme", "--to", "labelme")
    assert "12 images" in text and len(list((tmp_path / "labelme").rglob("*.json"))) == 12
    assert "is there already" in call("convert", data, tmp_path / "labelme", "--to", "labelme", code=Exit.BAD_INPUT)
    broken = json.loads(data.read_text())
    broken["annotations"][0]["category_id"] = 99
    (runs / "data" / "broken.json").write_text(json.dumps(broken))
    words = ["check-data", runs / "data" / "broken.json", f"data.image_root={runs / 'data' / 'val'}"]
    assert "99" in call(*words, f"output.uri={tmp_path / 'found'}", code=Exit.FAILED)
    assert (tmp_path / "found" / "data_report.json").exists()
