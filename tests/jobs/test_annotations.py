"""`maskfleet check-data` and `convert` on drawn annotations; what check-data, train and evaluate say of odd ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.train import TrainConfig
from jobs.terminal import Exit
from jobs.training.train import prepare_train, run_train_here
from tests.jobs.drawn_runs import call, write_run
from tests.jobs.training.small_trainings import SPEC
from tests.pipeline.dataset.odd_coco import KINDS, write_odd

DRY_RUN = ("train", "--dry-run", "model.spec.norm=group", "train.max_steps=2")


def test_check_data_and_convert(runs: Path, tmp_path: Path) -> None:
    data = runs / "data" / "val.json"
    assert "12 images" in call("check-data", data)
    text = call("convert", data, tmp_path / "labelme", "convert.to=labelme")
    assert "12 images" in text and len(list((tmp_path / "labelme").rglob("*.json"))) == 12
    assert "is there already" in call("convert", data, tmp_path / "labelme", "convert.to=labelme", code=Exit.BAD_INPUT)
    broken = json.loads(data.read_text())
    broken["annotations"][0]["category_id"] = 99
    (runs / "data" / "broken.json").write_text(json.dumps(broken))
    words = ["check-data", runs / "data" / "broken.json", f"data.image_root={runs / 'data' / 'val'}"]
    assert "99" in call(*words, f"output.uri={tmp_path / 'found'}", code=Exit.BAD_INPUT)
    assert (tmp_path / "found" / "data_report.json").exists()


@pytest.mark.parametrize("name", KINDS)
def test_check_data_and_training_say_the_same_of_each_kind(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = write_odd(tmp_path, kind)
    code = Exit.BAD_INPUT if kind.outcome == "refused" else Exit.DONE
    checked = call("check-data", path, code=code)
    planned = call(*DRY_RUN, f"data.train={path}", f"output.uri={tmp_path / 'out'}", code=code)
    assert kind.words in checked and kind.words in planned
    assert ("note: " in planned) == (kind.outcome in ("noted", "ignored"))


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if kind.outcome != "read" and "categor" not in name]
)
def test_validation_annotations_are_checked_before_the_first_step(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    (tmp_path / "train").mkdir()
    path = write_odd(tmp_path, kind)
    train = write_odd(tmp_path / "train", KINDS["keypoints" if "keypoint" in name else "valid"])
    words = (
        f"data.train={train}",
        f"data.val={path}",
        "train.validate_every_steps=1",
        f"output.uri={tmp_path / 'out'}",
    )
    result = CliRunner().invoke(app, [*DRY_RUN, *words])
    assert kind.words in result.output
    assert result.exit_code == (Exit.BAD_INPUT if kind.outcome == "refused" else Exit.DONE)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.outcome != "refused"])
def test_each_kind_that_is_not_refused_is_trained_on_and_validated(name: str, tmp_path: Path) -> None:
    path = str(write_odd(tmp_path, KINDS[name]))
    values = {"max_steps": 2, "batch_size": 2, "data_workers": 0, "validate_every_steps": 1, "schedule": "constant"}
    config = TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {"train": path, "val": path},
            "train": values,
            "output": {"uri": str(tmp_path / "out")},
        }
    )
    result = run_train_here(prepare_train(config))
    assert result.step == 2 and "segm_AP" in result.last_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that finds both objects of the valid file exactly."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "val").mkdir()
    write_odd(folder / "val", KINDS["valid"]).rename(folder / "val.json")
    (folder / "val/train/a.png").unlink()
    write_run(folder, folder / "found", drop_every=0)
    return folder / "found"


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_measured_or_refused_as_ground_truth(name: str, run: Path, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = write_odd(tmp_path, kind)
    result = CliRunner().invoke(
        app, ["evaluate", str(run), f"ground_truth.uri={path}", f"output.uri={tmp_path / 'out'}"]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (Exit.DONE, Exit.BAD_INPUT) and "Traceback" not in result.output
    if name in ("valid", "annotation id 0", "iscrowd false", "RLE of run lengths", "bbox null"):
        figures = json.loads((tmp_path / "out/metrics.json").read_text())
        assert "1.000" in result.output and figures


@pytest.mark.long
def test_real_odd_folders_are_told_apart_alike_by_check_data_and_training(shared_data: Path, tmp_path: Path) -> None:
    """Neither ends with a traceback, both end with the same code, and a refusal is one sentence of one line."""
    faults = []
    for folder in sorted(path for path in (shared_data / "odd_annotations").iterdir() if path.is_dir()):
        names = [name for name in ("ann.json", "val.json") if (folder / name).exists()]
        data = folder / names[0] if names else folder
        codes = []
        for words in (("check-data", str(data)), (*DRY_RUN, f"data.train={data}", f"output.uri={tmp_path / 'out'}")):
            result = CliRunner().invoke(app, [*words])
            codes.append(result.exit_code)
            if not isinstance(result.exception, SystemExit | None) or "Traceback" in result.output:
                faults.append(f"{folder.name}: {words[0]}: {result.exception!r}")
        if codes[0] != codes[1] or codes[0] not in (Exit.DONE, Exit.BAD_INPUT):
            faults.append(f"{folder.name}: check-data ends with {codes[0]}, train with {codes[1]}")
    assert not faults, "\n".join(faults)
