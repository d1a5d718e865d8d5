"""The history of evaluations: each kept once, read together, plotted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from pipeline.evaluation.metrics import evaluate
from pipeline.results.history import append_history, load_history, plot_trend, trend


def test_history_keeps_each_evaluation_once(drawn_run, frames, tmp_path):
    instances, images = frames
    metrics = evaluate(instances, images, drawn_run.truth)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    uri = str(tmp_path / "history")
    assert len(load_history(uri)) == 0
    for day, run_id in enumerate(["r1", "r2", "r1"]):
        added = append_history(uri, metrics, when=start + timedelta(days=day), run_id=run_id, model_sha256="m")
        assert added == (day < 2)
    frame = load_history(uri, iou_type="segm", metric="AP")
    overall = frame[frame["category"].isna()]
    assert overall["run_id"].tolist() == ["r1", "r2"]
    assert overall["value"].tolist() == [metrics.overall("segm", "AP")] * 2
    assert set(frame["num_failed"]) == {1}
    table = trend(load_history(uri))
    assert table["segm AP"].tolist() == overall["value"].tolist() and len(table) == 2
    png = plot_trend(load_history(uri))
    (tmp_path / "t.png").write_bytes(png)
    assert Image.open(tmp_path / "t.png").size[0] > 500
    with pytest.raises(ValueError, match="without a zone"):
        append_history(uri, metrics, when=datetime(2026, 1, 1), run_id="r")
    with pytest.raises(ValueError, match="keeps no 'colour'"):
        append_history(uri, metrics, when=start, run_id="r", colour="red")
