"""The results table of a sweep: paired differences, the Markdown page, the Parquet types and the plot."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.config.sweep import EffectSection
from jobs.sweep.results import TrialRow, make_row, paired_differences, plot, to_markdown, write_results
from jobs.training.output import TrainingOutput
from pipeline.storage.stores import open_storage


def row(case: str, seed: int, ap: float | None, error: str | None = None) -> TrialRow:
    figures = {} if ap is None else dict.fromkeys(("segm_AP", "segm_AP50", "bbox_AP", "mean_iou", "accuracy"), ap)
    return TrialRow(f"{case}{seed}", error, {"case": case}, seed, figures, ap, 9, 1.0, None, None, "")


class TestTable:
    ROWS = (
        row("a", 0, 0.30),
        row("a", 1, 0.34),
        row("b", 0, 0.31),
        row("b", 1, 0.30),
        row("c", 0, None, "no\nmemory | left"),
    )
    EFFECT = EffectSection(of="a", over="b", published=5.5, source="table 2b")

    def test_only_trials_that_differ_in_nothing_else_are_paired(self):
        assert paired_differences(self.ROWS, self.EFFECT) == pytest.approx([-0.01, 0.04])
        missing = EffectSection(of="a", over="c", published=1.0, source="x")
        assert paired_differences(self.ROWS, missing) == []

    def test_means_spread_signs_and_errors_are_in_the_markdown(self):
        text = to_markdown(self.ROWS, [self.EFFECT])
        assert "| a | 2 | 0.320 ± 0.028 |" in text and "| c | 0 (+ 1 failed) |" in text
        assert "| a over b | segm AP | +5.5 | +1.5 ± 3.5 | 2 | 1 of 2 | table 2b |" in text
        assert "no memory \\| left |" in text and "Accuracy is TP / (TP + FP + FN)" in text
        heads = [line for line in text.splitlines() if "accuracy" in line and line.startswith("|")]
        assert heads and all("segm AP" in line for line in heads)

    def test_the_plot_is_a_png_also_where_nothing_was_measured(self):
        assert plot(self.ROWS).startswith(b"\x89PNG")
        assert plot(self.ROWS[-1:]).startswith(b"\x89PNG")


class TestRow:
    def test_it_holds_the_last_validation_and_the_best_segm_ap(self, tmp_path: Path):
        output = TrainingOutput(str(tmp_path))
        output.write_metrics(
            [
                {"step": 1, "epoch": 0.5, "loss": 3.0, "images_per_s": 10.0},
                {"step": 1, "epoch": 0.5, "segm_AP": 0.5, "bbox_AP": 0.4, "validation_s": 1.0},
                {"step": 2, "epoch": 1.0, "loss": 2.0, "images_per_s": 20.0},
                {"step": 2, "epoch": 1.0, "segm_AP": 0.25, "validation_s": 1.0},
            ]
        )
        made = make_row("t", {"case": "a"}, 3, output, None)
        assert made.figures == {"segm_AP": 0.25} and made.best_segm_ap == 0.5
        assert (made.step, made.epoch, made.loss, made.images_per_s) == (2, 1.0, 2.0, 15.0)
        failed = make_row("t", {"case": "a"}, 3, output, "no memory")
        assert failed.status == "failed" and failed.step == 2
        assert failed.figures == {} and failed.best_segm_ap is None

    def test_a_trial_that_never_started_has_a_row(self, tmp_path: Path):
        made = make_row("t", {}, 0, TrainingOutput(str(tmp_path / "nothing")), "no memory")
        assert (made.step, made.epoch, made.loss, made.images_per_s) == (0, 0.0, None, None)


def test_columns_of_the_parquet_file_have_the_type_of_their_values(tmp_path: Path):
    output = TrainingOutput(str(tmp_path / "nothing"))
    rows = [
        make_row("a", {"train.batch_size": 1, "train.momentum": 0, "train.clip_norm": None}, 0, output, None),
        make_row("b", {"train.batch_size": 2, "train.momentum": 0.5, "train.clip_norm": 1.0}, 0, output, None),
    ]
    write_results(open_storage(str(tmp_path)), rows, [])
    table = pq.read_table(tmp_path / "results.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["train.batch_size"] == "int64" and types["train.momentum"] == "double"
    assert types["segm_AP"] == "double" and types["seed"] == "int64" and types["error"] == "string"
    assert table["train.clip_norm"].to_pylist() == [None, "1.0"]  # mixed with null: JSON text
    write_results(open_storage(str(tmp_path / "empty")), [], [])
    assert not (tmp_path / "empty").exists()
