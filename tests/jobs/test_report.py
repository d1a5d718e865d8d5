"""`maskfleet report`, `export` and `history` on small finished runs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console

from jobs.report import to_rich_history
from jobs.terminal import Exit
from tests.jobs.drawn_runs import call, write_run


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
    assert "holds no run" in call("export", tmp_path, "export.to=coco", code=Exit.BAD_INPUT)
    assert "holds no run" in call("export", tmp_path, "export.to=coco", "--dry-run", code=Exit.BAD_INPUT)


def test_the_report_of_an_unfinished_run_holds_what_is_committed_and_says_how_much_that_is(
    runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_run(runs / "data", run, drop_every=0, shard_size=1)
    num_shards = len(list(run.rglob("commits/*/*.json")))
    for path in (run / "manifest.parquet", run / "final.json", max(run.rglob("commits/*/*.json"))):
        path.unlink()
    there = f"the run is not finished: {num_shards - 1} of {num_shards} shards committed"
    assert there in call("report", run)
    page = (tmp_path / "run.report.html").read_text()
    assert there.capitalize().replace("The", "This") in page and f"<b>{num_shards - 1}</b>images" in page
    shutil.rmtree(run / "commits")
    (run / "plan.json").unlink()
    assert "the run is not finished: its images are still being listed" in call("report", run)
    assert "<b>0</b>images" in (tmp_path / "run.report.html").read_text()
    assert "is not finished" in call("export", run, "export.to=coco", code=Exit.BAD_INPUT)


def test_a_run_is_exported_in_each_form(runs: Path, tmp_path: Path) -> None:
    for form, name in (("coco", "coco.json"), ("yolo", "data.yaml"), ("labelme", "labelme"), ("png", "png")):
        call("export", runs / "perfect", f"export.to={form}", f"output.uri={tmp_path / form}")
        assert (tmp_path / form / name).exists()
    assert "export.to: 'voc' is not allowed" in call("export", runs / "perfect", "export.to=voc", code=Exit.BAD_INPUT)


def test_history_prints_and_plots_the_kept_evaluations(runs: Path, tmp_path: Path) -> None:
    words = [f"ground_truth.uri={runs / 'data' / 'val.json'}", f"history.uri={tmp_path / 'history'}"]
    for name in ("perfect", "worse"):
        call("evaluate", runs / name, *words, f"output.uri={tmp_path / name}")
    text = call("history", tmp_path / "history", f"output.uri={tmp_path / 'plot'}")
    assert "1.0000" in text and "label" not in text and (tmp_path / "plot" / "history.png").stat().st_size > 1000
    assert "no evaluation is kept" in call("history", tmp_path / "nothing", code=Exit.BAD_INPUT)
    text = call("history", tmp_path / "history", "history.figures=[segm recall]")
    assert "recall" in text and "AP" not in text
    words = ["history", str(tmp_path / "history"), "history.figures=[segm AQ]"]
    assert "'segm AQ' is in no evaluation" in call(*words, code=Exit.BAD_INPUT)


FIGURES = ("bbox AP", "segm AP", "segm recall")


def evaluations(number: int, *, all_differ: bool) -> pd.DataFrame:
    """As `trend` gives them: of one model each night, or with everything another one each night."""
    rows = [
        {
            "when": pd.Timestamp(2026, 11, 1 + i, 2, 30),
            "run_id": f"{i}1234567cut",
            "model_sha256": f"{i * all_differ}abcdef0cut",
            "truth_sha256": f"{i * all_differ}fedcba0cut",
            "label": f"nightly-{i}" if all_differ else None,
            "num_images": 5000 + i * all_differ,
            "num_failed": i * all_differ,
            **{name: 0.5 + i / 100 for name in FIGURES},
        }
        for i in range(number)
    ]
    return pd.DataFrame(rows)


def printed_history(table: pd.DataFrame, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich_history(table, width))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_history_says_once_what_is_the_same_in_all_rows() -> None:
    lines = printed_history(evaluations(3, all_differ=False), 80)
    assert lines[0] == "when run bbox AP segm AP segm recall"
    assert lines[2] == "2026-11-01 02:30 01234567 0.5000 0.5000 0.5000" and len(lines) == 6
    assert lines[5] == "in all rows: model 0abcdef0, truth 0fedcba0, images 5,000, failed 0"


def test_history_in_a_narrow_terminal_leaves_columns_out_by_name_and_cuts_none() -> None:
    table = evaluations(3, all_differ=True)
    wide = printed_history(table, 10_000)
    assert wide[0] == "when label run model truth images failed bbox AP segm AP segm recall" and len(wide) == 5
    assert wide[4] == "2026-11-03 02:30 nightly-2 21234567 2abcdef0 2fedcba0 5,002 2 0.5200 0.5200 0.5200"
    narrow = printed_history(table, 80)
    assert narrow[0] == "when label images failed bbox AP segm AP segm recall"
    assert narrow[4] == "2026-11-03 02:30 nightly-2 5,002 2 0.5200 0.5200 0.5200"
    assert narrow[5:] == ["no room for truth, model, run; a wider terminal or a pipe shows all"]
    assert printed_history(table, 40)[0] == "when bbox AP segm AP"
