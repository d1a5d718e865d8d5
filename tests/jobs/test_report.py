"""`maskfleet report`, `export` and `history` on small finished runs."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console

from jobs.report import to_rich_history
from jobs.terminal import Exit
from tests.jobs.drawn_runs import call, write_run
from tests.pipeline.nightly_runs import segment, write_chain


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


def test_a_report_shows_truth_and_two_runs_side_by_side(runs: Path, tmp_path: Path) -> None:
    page, truth = tmp_path / "report.html", f"ground_truth.uri={runs / 'data' / 'val.json'}"
    words = ["report", runs / "perfect", f"run_b.uri={runs / 'worse'}", truth, f"output.uri={page}"]
    text = " ".join(call(*words, "--dry-run").split())
    assert "perfect and " in text and "against " in text and not page.exists()
    call(*words, "evaluate.score_threshold=0.2")
    html = page.read_text()
    assert 'id="errors"' in html and "Photos on which B has fewer errors than A: 0; more: " in html
    assert "perfect and worse: Mask R-CNN on images, " in html and "a score of 0.2 and up" in html
    call("report", runs / "perfect", f"run_b.uri={runs / 'worse'}", f"output.uri={page}")
    assert 'id="errors"' not in page.read_text() and "numbers differ most first" in page.read_text()
    for run, kinds in (("worse", ["bbox B", "segm B"]), ("perfect", ["bbox A", "bbox B", "segm A", "segm B"])):
        shutil.copytree(runs / run, tmp_path / run)
        call("evaluate", tmp_path / run, truth)
        there = tmp_path / "perfect" if (tmp_path / "perfect").exists() else runs / "perfect"
        call("report", there, f"run_b.uri={tmp_path / 'worse'}", f"output.uri={page}")
        assert re.findall(r"<th>((?:bbox|segm) [AB])</th>", page.read_text()) == kinds


def test_a_report_refuses_truth_that_does_not_fit_before_it_writes(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    words = ["report", runs / "perfect", f"output.uri={page}"]
    for word, reason in (
        (f"ground_truth.uri={tmp_path / 'none.json'}", "none.json"),
        (f"run_b.uri={tmp_path}", "holds no run"),
        (f"ground_truth.uri={runs / 'data' / 'train.json'}", "no image in common"),
        ("evaluate.score_threshold=2", "evaluate.score_threshold"),
    ):
        assert reason in " ".join(call(*words, word, code=Exit.BAD_INPUT).split()).replace("- ", "")
    classes = [f"ground_truth.uri={runs / 'data' / 'val.json'}", "evaluate.classes=[cat]"]
    assert "classes has 'cat'" in call(*words, *classes, code=Exit.BAD_INPUT)
    (tmp_path / "config.yaml").write_text("{}")
    for word in (f"ground_truth.uri={runs / 'data' / 'val.json'}", f"run_b.uri={runs / 'worse'}"):
        assert "run.uri is a training" in call("report", tmp_path, word, code=Exit.BAD_INPUT)
    assert not page.exists()


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
    forms = {"coco": "coco.json", "coco-results": "results.json", "yolo": "data.yaml", "labelstudio": "tasks.json"}
    for form, name in forms.items():
        text = call("export", runs / "perfect", f"export.to={form}", f"output.uri={tmp_path / form}")
        assert (tmp_path / form / name).exists() and "12 images, " in text
    all_rows, labels = (
        len(json.loads((tmp_path / name).read_text())) for name in ("coco-results/results.json", "coco/coco.json")
    )
    assert all_rows > labels == 3
    text = call("export", runs / "perfect", "export.to=yolo", "export.photos=refer", code=Exit.BAD_INPUT)
    assert "export.to=yolo: YOLO keeps its photos in folders of its own, so they must be copied or linked" in text
    assert "export.to: 'tiff' is not allowed" in call("export", runs / "perfect", "export.to=tiff", code=Exit.BAD_INPUT)


def test_an_export_is_checked_and_trained_on_as_it_lies(runs: Path, tmp_path: Path) -> None:
    call("export", runs / "perfect", "export.to=yolo", "export.tolerance_px=1", f"output.uri={tmp_path / 'yolo'}")
    assert "(yolo): 12 images" in call("check-data", tmp_path / "yolo")
    words = ("model.spec.norm=group", "train.max_steps=2", f"output.uri={tmp_path / 'out'}")
    text = call("train", "--dry-run", f"data.train=[{tmp_path / 'yolo'},{runs / 'data/val.json'}]", *words)
    assert "24 images" in text


def test_several_runs_are_reported_and_exported_as_one(tmp_path: Path) -> None:
    runs, photos, deleted = write_chain(tmp_path, 3, new=4, changed=3, deleted=2)
    fresh = segment(photos, tmp_path / "fresh")
    call("export", fresh, "export.min_score=0")
    want = json.loads((tmp_path / "fresh.coco" / "coco.json").read_text())
    for words in ([runs[-1], "run.chain=true"], runs, [f"{tmp_path}/nights/night-*", "run.chain=true"]):
        text = " ".join(call("export", *words, "export.min_score=0").split())
        assert "note: 3 runs, " in text and f"note: {len(deleted)} images that the input no longer has stay" in text
        found = json.loads((tmp_path / "nights" / "night-02.runs.coco" / "coco.json").read_text())
        names = {image["id"]: image["file_name"] for image in found["images"]}
        assert found["categories"] == want["categories"]
        assert {*names.values()} - deleted == {image["file_name"] for image in want["images"]}
        kept = [each for each in found["annotations"] if names[each["image_id"]] not in deleted]
        assert len(kept) == len(want["annotations"])
    call("export", *runs, "export.to=yolo", "run.count_deleted=false")
    assert len(list(tmp_path.rglob("night-02.runs.yolo/labels/**/*.txt"))) == len(names)
    text = call("report", *runs)
    assert "night-02.runs.report.html" in " ".join(text.split()).replace(" ", "") and "no longer has" in text
    page = (tmp_path / "nights" / "night-02.runs.report.html").read_text()
    assert f"<b>{len(found['annotations']):,}</b>instances" in page and "<title>night-02 (3 runs): Mask R-CNN" in page
    shutil.rmtree(photos.root)
    photos.root.write_text("no folder")
    assert "no longer has stay" in call("report", *runs) or "cannot be listed" in call("report", *runs)


def test_runs_that_are_no_one_table_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs, photos, _ = write_chain(tmp_path, 2, new=4, changed=3, deleted=2)
    begun = segment(photos, tmp_path / "begun", runs[-1], shards=[])
    before = sorted(tmp_path.rglob("*"))
    for command in ("report", "export"):
        text = " ".join(call(command, f"{tmp_path}/nights/night-*", code=Exit.BAD_INPUT).split())
        assert "is a pattern, which does not say which run is the newest" in text
        assert "named twice" in call(command, runs[0], runs[0], code=Exit.BAD_INPUT)
        assert "holds no run" in call(command, tmp_path / "none", runs[0], code=Exit.BAD_INPUT)
        assert "earlier names runs" in call(command, *runs, "run.chain=true", code=Exit.BAD_INPUT)
    assert "begun is not finished" in " ".join(call("export", begun, "run.chain=true", code=Exit.BAD_INPUT).split())
    assert sorted(tmp_path.rglob("*")) == before
    assert "not finished" in call("report", begun, "run.chain=true")


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
