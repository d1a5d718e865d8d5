"""`maskfleet sweep`: its trials, what is refused, and a real sweep on Ray Tune with a trial that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.load import ConfigError
from jobs.config.sweep import SweepConfig
from jobs.sweep.run import iter_trials, prepare_sweep, run_sweep
from jobs.terminal import Exit
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
    def test_every_case_meets_every_grid_point_and_seed(self, base: Path, tmp_path: Path):
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

    def test_a_name_depends_only_on_what_is_trained(self, base: Path, tmp_path: Path):
        small = settings(base, tmp_path / "a", grid={"train.learning_rate": [0.1]})
        grown = settings(
            base, tmp_path / "b", grid={"train.learning_rate": [0.2, 0.1]}, fixed={"train.max_failures": 9}
        )
        assert set(names_of(small, tmp_path / "a")) < set(names_of(grown, tmp_path / "b"))
        changed = settings(base, tmp_path / "a", grid={"train.learning_rate": [0.1]}, fixed={"train.momentum": 0.5})
        assert names_of(changed, tmp_path / "a") != names_of(small, tmp_path / "a")


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
            (["sweep.base=nowhere.yaml"], "sweep.base nowhere.yaml: there is no such file"),
        ],
    )
    def test_a_bad_key_or_value_ends_with_2_before_anything_starts(
        self, base: Path, tmp_path: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("jobs.sweep.run.cluster", lambda section: pytest.fail("a cluster was started"))
        places = [f"sweep.base={base}", "draw={num_train: 3, num_val: 1}", f"output.uri={tmp_path / 'out'}"]
        result = CliRunner().invoke(app, ["sweep", *places, *words])
        assert result.exit_code == Exit.BAD_INPUT and sentence in result.stderr, result.stderr
        assert not (tmp_path / "out").exists()

    def test_missing_data_and_a_subset_larger_than_the_set(self, base: Path, tmp_path: Path):
        config = settings(base, tmp_path / "out", fixed={"data.train": "/no/such.json", "data.val": "/no/such.json"})
        with pytest.raises(ConfigError, match=r"/no/such\.json"):
            prepare_sweep(config.model_copy(update={"draw": None}))
        with pytest.raises(ConfigError, match=r"99 images is wanted; allowed are 1 to 3 \(in the trial"):
            run_sweep(prepare_sweep(settings(base, tmp_path / "out", grid={"data.num_images": [1, 99]})))

    def test_an_output_that_holds_no_sweep(self, base: Path, tmp_path: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/config.yaml").write_text("train: {}")
        with pytest.raises(ConfigError, match="holds something that is no sweep"):
            prepare_sweep(settings(base, tmp_path / "out"))


@pytest.mark.long
def test_a_sweep_goes_on_where_it_stopped_and_a_failure_is_a_row(ray_cluster: None, base: Path, tmp_path: Path):
    out = tmp_path / "out"
    bad = {"train.learning_rate": 100.0, "train.max_non_finite_steps": 0, "train.max_steps": 60}
    said: list[str] = []
    config = settings(base, out, cases={"good": {}, "bad": bad}, trials_at_once=1)
    result = run_sweep(prepare_sweep(config), on_progress=said.append)
    assert [row.status for row in result.rows] == ["done", "failed"] and result.num_failed == 1
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
    assert [row.status for row in result.rows] == ["done", "done"]
    assert checkpoint.stat().st_mtime_ns == before
    assert pd.read_parquet(out / "results.parquet")["case"].tolist() == ["good", "other"]


@pytest.mark.slow
def test_trials_of_several_workers_are_ray_trains(ray_cluster: None, base: Path, tmp_path: Path):
    result = run_sweep(prepare_sweep(settings(base, tmp_path / "out", fixed={"train.num_workers": 2})))
    assert [row.status for row in result.rows] == ["done"], result.describe()
