"""`maskfleet sweep`: what is refused, what the table says, and a real sweep on Ray Tune with a trial that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import Exit, app
from jobs.config.load import ConfigError, load_config
from jobs.config.sweep import EffectSection, SweepConfig
from jobs.sweep.results import paired_differences, plot, to_markdown
from jobs.sweep.run import iter_trials, prepare_sweep, run_sweep
from pipeline.storage.stores import open_storage
from tests.specs import small_spec

SPEC = small_spec()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    train = {"max_steps": 2, "batch_size": 1, "data_workers": 0, "cpus_per_worker": 1, "validate_every_steps": 2}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump({"model": {"spec": SPEC.to_dict()}, "train": train}))
    return path


def settings(base: Path, out: Path, **sweep: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "sweep": {"base": str(base), **sweep},
            "draw": {"num_train": 3, "num_val": 1, "image_size": [48, 64], "max_shapes": 2},
            "output": {"uri": str(out)},
            "cluster": {"num_cpus": 2, "num_gpus": 0},
        }
    )


def names_of(config: SweepConfig, out: Path) -> list[str]:
    return [trial.name for trial in iter_trials(config, open_storage(str(out)))]


class TestTrials:
    def test_they_are_cases_times_grid_times_seeds(self, base: Path, tmp_path: Path):
        config = settings(
            base,
            tmp_path / "out",
            fixed={"train": {"learning_rate": 0.5}},
            cases={"a": {}, "b": {"model.spec.mask_activation": "softmax"}},
            grid={"train.learning_rate": [0.1, 0.2], "data.num_images": [None, 2]},
            seeds=[3, 4],
        )
        trials = list(iter_trials(config, open_storage(config.output.uri)))
        assert len(trials) == 16 and len({trial.name for trial in trials}) == 16
        last = trials[-1]
        assert last.values == {"case": "b", "train.learning_rate": 0.2, "data.num_images": 2} and last.seed == 4
        assert last.config.train.learning_rate == 0.2 and last.config.train.seed == 4
        assert last.config.model.spec.mask_activation == "softmax" and last.config.data.num_images == 2
        assert last.config.output.uri == str(tmp_path / "out/trials" / last.name)
        assert not (tmp_path / "out").exists()

    def test_names_follow_what_is_trained_alone(self, base: Path, tmp_path: Path):
        few = settings(base, tmp_path / "a", grid={"train.learning_rate": [0.1]})
        many = settings(base, tmp_path / "b", grid={"train.learning_rate": [0.2, 0.1]}, fixed={"train.max_failures": 9})
        assert set(names_of(few, tmp_path / "a")) < set(names_of(many, tmp_path / "b"))
        other = settings(base, tmp_path / "a", grid={"train.learning_rate": [0.1]}, fixed={"train.momentum": 0.5})
        assert names_of(other, tmp_path / "a") != names_of(few, tmp_path / "a")

    def test_words_of_the_command_line_reach_fixed_and_grid(self, base: Path, tmp_path: Path):
        words = ["sweep.fixed.data.train=x", "sweep.fixed.data.val=y", "sweep.grid.train.batch_size=[1, 2]"]
        words += [f"sweep.base={base}", f"output.uri={tmp_path}", "sweep.seeds=[0]"]
        config = load_config(SweepConfig, None, words)
        assert config.sweep.fixed == {"data.train": "x", "data.val": "y"}
        assert config.sweep.grid == {"train.batch_size": [1, 2]}


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["sweep.grid.train.learning_rat=[0.1]"], "train.learning_rat: there is no such key; did you mean learn"),
            (["sweep.grid.train.learning_rate=[0.1, -1]"], "train.learning_rate: -1 is not allowed: input should be g"),
            (["sweep.grid.model.spec.roi_op=[align, rolign]"], "roi_op='rolign': allowed are 'align', 'pool', 'warp'"),
            (["sweep.grid.train.seed=[1]"], "train.seed is not allowed in fixed, cases or grid; allowed are keys of"),
            (["sweep.grid.train.batch_size=[]"], "train.batch_size has no values; allowed is a list of at least one"),
            (["sweep.grid.train.batch_size=4"], "sweep.grid.train.batch_size: 4 is not allowed: input should be a va"),
            (["sweep.grid.train.batch_size=[2, 2]"], "two trials are the same training"),
            (["sweep.fixed.train.validate_every_steps=null"], "train.validate_every_steps: null is not allowed in a s"),
            (["sweep.base=nowhere.yaml"], "sweep.base nowhere.yaml: cannot be read"),
        ],
    )
    def test_a_bad_key_or_value_ends_with_2_before_anything_starts(
        self, base: Path, tmp_path: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("jobs.sweep.cluster", lambda section: pytest.fail("a cluster was started"))
        given = [f"sweep.base={base}", "draw={num_train: 3, num_val: 1}", f"output.uri={tmp_path / 'out'}", *words]
        result = CliRunner().invoke(app, ["sweep", *given])
        assert result.exit_code == Exit.BAD_INPUT and sentence in result.stderr, result.stderr
        assert not (tmp_path / "out").exists()

    def test_data_that_is_not_there_and_a_part_that_is_too_large(self, base: Path, tmp_path: Path):
        given = settings(base, tmp_path / "out", fixed={"data.train": "/no/such.json", "data.val": "/no/such.json"})
        with pytest.raises(ConfigError, match=r"/no/such\.json"):
            prepare_sweep(given.model_copy(update={"draw": None}))
        with pytest.raises(ConfigError, match=r"99 images is wanted; allowed are 1 to 3 \(in the trial"):
            run_sweep(prepare_sweep(settings(base, tmp_path / "out", grid={"data.num_images": [1, 99]})))

    def test_an_output_that_holds_something_else(self, base: Path, tmp_path: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/config.yaml").write_text("train: {}")
        with pytest.raises(ConfigError, match="holds something that is no sweep"):
            prepare_sweep(settings(base, tmp_path / "out"))

    def test_effects_and_cases_that_make_no_sense(self, base: Path, tmp_path: Path):
        effect = {"of": "a", "over": "c", "published": 1.0, "source": "x"}
        with pytest.raises(ValueError, match="effects: 'c' is no case; allowed are a, b"):
            settings(base, tmp_path, cases={"a": {}, "b": {}}, effects=[effect])
        with pytest.raises(ValueError, match=r"train\.momentum is in case 'a' and in the grid"):
            settings(base, tmp_path, cases={"a": {"train.momentum": 0.1}}, grid={"train.momentum": [0.2]})


def row(case: str, seed: int, ap: float | None, error: str | None = None) -> dict[str, Any]:
    figures = dict.fromkeys(("segm_AP", "segm_AP50", "bbox_AP", "mean_iou", "accuracy"), ap)
    status = "done" if error is None else "failed"
    name = {"trial": f"{case}{seed}", "case": case, "seed": seed}
    return {**name, "status": status, "error": error, "step": 9, **figures}


class TestTable:
    ROWS = (
        row("a", 0, 0.30),
        row("a", 1, 0.34),
        row("b", 0, 0.31),
        row("b", 1, 0.30),
        row("c", 0, None, "no\nmemory | left"),
    )
    EFFECT = EffectSection(of="a", over="b", published=5.5, source="table 2b")

    def test_differences_are_of_trials_that_differ_in_nothing_else(self):
        assert paired_differences(self.ROWS, ["case"], self.EFFECT) == pytest.approx([-0.01, 0.04])
        missing = EffectSection(of="a", over="c", published=1.0, source="x")
        assert paired_differences(self.ROWS, ["case"], missing) == []

    def test_means_spread_signs_and_errors_are_in_the_markdown(self):
        text = to_markdown(self.ROWS, ["case"], [self.EFFECT])
        assert "| a | 2 | 0.320 ± 0.028 |" in text and "| c | 0 (+ 1 failed) |" in text
        assert "| a over b | segm AP | +5.5 | +1.5 ± 3.5 | 2 | 1 of 2 | table 2b |" in text
        assert "no memory \\| left |" in text and "Accuracy is TP / (TP + FP + FN)" in text
        heads = [line for line in text.splitlines() if "accuracy" in line and line.startswith("|")]
        assert heads and all("segm AP" in line for line in heads)

    def test_the_plot_is_a_png_also_where_nothing_was_measured(self):
        assert plot(self.ROWS, ["case"]).startswith(b"\x89PNG")
        assert plot(self.ROWS[-1:], ["case"]).startswith(b"\x89PNG")


def test_a_sweep_goes_on_where_it_stopped_and_a_failure_is_a_row(ray_cluster: None, base: Path, tmp_path: Path):
    out = tmp_path / "out"
    bad = {"train.learning_rate": 100.0, "train.max_non_finite_steps": 0, "train.max_steps": 60}
    said: list[str] = []
    config = settings(base, out, cases={"good": {}, "bad": bad}, trials_at_once=1)
    result = run_sweep(prepare_sweep(config), on_progress=said.append)
    assert [row["status"] for row in result.rows] == ["done", "failed"] and result.num_failed == 1
    assert "2/2 trials, 1 failed" in said[-1] and "bad-s0" in result.describe()
    table = pd.read_parquet(out / "results.parquet")
    assert "train.max_non_finite_steps allows 0" in table["error"][1] and table["error"].isna()[0]
    assert table["segm_AP"].notna().tolist() == [True, False] and table["accuracy"][0] >= 0
    assert table["step"][0] == 2 and (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.md").read_text().count("good-s0") == 1

    checkpoint = Path(table["output"][0]) / "checkpoints/step-00000002/model.safetensors"
    before = checkpoint.stat().st_mtime_ns
    grown = settings(base, out, cases={"good": {}, "other": {"train.momentum": 0.5}}, trials_at_once=1)
    plan = prepare_sweep(grown)
    assert len(plan.finished) == 1 and "of which 1 are trained" in plan.describe()
    result = run_sweep(plan)
    assert [row["status"] for row in result.rows] == ["done", "done"]
    assert checkpoint.stat().st_mtime_ns == before
    assert pd.read_parquet(out / "results.parquet")["case"].tolist() == ["good", "other"]


@pytest.mark.slow
def test_trials_of_several_workers_are_ray_trains(ray_cluster: None, base: Path, tmp_path: Path):
    result = run_sweep(prepare_sweep(settings(base, tmp_path / "out", fixed={"train.num_workers": 2})))
    assert [row["status"] for row in result.rows] == ["done"], result.describe()
