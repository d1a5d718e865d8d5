"""`maskfleet report`, `export` and `history` on small finished runs."""

from __future__ import annotations

from pathlib import Path

from jobs.terminal import Exit
from tests.jobs.drawn_runs import call


def test_a_report_is_one_page_with_the_runs_evaluation(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    call("report", runs / "perfect", f"output.uri={page}")
    assert page.read_text().startswith("<!") and 'id="evaluation"' not in page.read_text()
    words = ["report", runs / "perfect", f"output.uri={page}", f"report.evaluation={tmp_path / 'figures'}"]
    assert "figures holds no metrics.json" in call(*words, code=Exit.FAILED)
    truth = f"ground_truth.uri={runs / 'data' / 'val.json'}"
    call("evaluate", runs / "perfect", truth, f"output.uri={tmp_path / 'figures'}")
    call(*words)
    assert 'id="evaluation"' in page.read_text()


def test_a_folder_without_a_run_or_a_training_has_no_report(tmp_path: Path) -> None:
    text = call("report", tmp_path, code=Exit.BAD_INPUT)
    assert "holds neither a run (run.json) nor a training (config.yaml)" in " ".join(text.split())
    assert "holds no run" in call("export", tmp_path, "--to", "coco", code=Exit.BAD_INPUT)
    assert "holds no run" in call("export", tmp_path, "--to", "coco", "--dry-run", code=Exit.BAD_INPUT)


def test_a_run_is_exported_in_each_form(runs: Path, tmp_path: Path) -> None:
    for form, name in (("coco", "coco.json"), ("yolo", "data.yaml"), ("labelme", "labelme"), ("png", "png")):
        call("export", runs / "perfect", "--to", form, f"output.uri={tmp_path / form}")
        assert (tmp_path / form / name).exists()
    assert "export.to: 'voc' is not allowed" in call("export", runs / "perfect", "--to", "voc", code=Exit.BAD_INPUT)


def test_history_prints_and_plots_the_kept_evaluations(runs: Path, tmp_path: Path) -> None:
    words = [f"ground_truth.uri={runs / 'data' / 'val.json'}", f"history.uri={tmp_path / 'history'}"]
    for name in ("perfect", "worse"):
        call("evaluate", runs / name, *words, f"output.uri={tmp_path / name}")
    text = call("history", tmp_path / "history", f"output.uri={tmp_path / 'plot'}")
    assert "1.0000" in text and (tmp_path / "plot" / "history.png").stat().st_size > 1000
    assert "no evaluation is kept" in call("history", tmp_path / "nothing")
    text = call("history", tmp_path / "history", "history.figures=[segm recall]")
    assert "recall" in text and "AP" not in text
    words = ["history", str(tmp_path / "history"), "history.figures=[segm AQ]"]
    assert "'segm AQ' is in no evaluation" in call(*words, code=Exit.BAD_INPUT)
