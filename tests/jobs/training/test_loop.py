"""The training loop with one worker in this process; what Ray adds is tested in test_train.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from jobs.checkpoints import open_checkpoint
from jobs.config.load import config_hash, to_plain, to_saved
from jobs.config.train import TrainConfig
from jobs.training.loop import LoopResult, TrainingStopped, epochs_between_validations, steps_left
from jobs.training.output import TrainingOutput, checkpoint_name
from jobs.training.sets import load_training_set, samples_of_epoch
from jobs.training.train import prepare_train
from model.spec import ModelSpec
from pipeline.bulk.verify import verify_run
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.shapes import draw_shapes
from pipeline.evaluation.metrics import evaluate_run
from pipeline.manifest import open_run
from tests.jobs.training.small_trainings import (
    SPEC,
    assert_same_state,
    newest_checkpoint,
    on_kind,
    train,
    train_config,
)
from tests.specs import small_spec


class CutOff(Exception):
    """Ends a training in the middle, as a kill would."""


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adamw", "ema_decay": 0.9, "accumulate_steps": 2, "data_workers": 2}],
    ids=["sgd", "all"],
)
def test_a_run_cut_off_anywhere_ends_as_an_undisturbed_one(shapes: Path, tmp_path: Path, options: dict[str, Any]):
    train(train_config(shapes, tmp_path / "whole", **options))
    whole = newest_checkpoint(tmp_path / "whole")

    config = train_config(shapes, tmp_path / "cut", **options)
    for last_step in (1, 2, 5):  # before the first checkpoint, just after one, between two

        def cut(kind: str, sentence: str, last_step: int = last_step, **values: Any) -> None:
            if kind == "step" and values["step"] == last_step:
                raise CutOff

        with pytest.raises(CutOff):
            train(config, cut)
    resumed: list[int] = []
    train(config, on_kind("resume", lambda values: resumed.append(values["step"])))
    assert resumed == [4]
    cut_off = newest_checkpoint(tmp_path / "cut")

    assert_same_state(whole.state_dict, cut_off.state_dict)
    assert_same_state(whole.training_state, cut_off.training_state)
    assert whole.progress == cut_off.progress and whole.progress["finished"]
    rows = [TrainingOutput(str(tmp_path / name)).read_metrics() for name in ("whole", "cut")]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_rows_hold_every_loss_term_and_their_sum(shapes: Path, tmp_path: Path):
    train(train_config(shapes, tmp_path, max_steps=2, log_every_steps=2, warmup_steps=2, warmup_factor=0.5))
    (row,) = TrainingOutput(str(tmp_path)).read_metrics()
    terms = ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    assert row["loss"] == pytest.approx(sum(row[term] for term in terms))
    assert row["step"] == 2 and row["epoch"] == pytest.approx(0.4) and row["learning_rate"] == pytest.approx(0.0075)
    assert row["images_per_s"] > 0 and 0 <= row["data_wait_share"] <= 1 and row["peak_memory_bytes"] > 2**20


@pytest.mark.long
def test_torn_and_altered_checkpoints_are_set_aside_and_the_run_goes_on(shapes: Path, tmp_path: Path):
    config = train_config(shapes, tmp_path)
    train(config)
    whole = newest_checkpoint(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000006" / "checkpoint.json").unlink()
    weights = checkpoints / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    events: list[tuple[str, str]] = []
    train(config, lambda kind, sentence, **values: events.append((kind, sentence)))
    assert [sentence for kind, sentence in events if kind == "resume"] == ["going on after step 2 of 6"]
    aside = [sentence for kind, sentence in events if kind == "set_aside"]
    assert len(aside) == 2 and "step-00000006 is incomplete" in aside[0] and "sha256 of model.safetensors" in aside[1]
    assert_same_state(whole.state_dict, newest_checkpoint(tmp_path).state_dict)


def test_a_broken_photo_is_named_and_training_goes_on(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    photos = sorted((data / "train").iterdir())
    photos[3].write_bytes(photos[3].read_bytes()[:200])
    photos[7].unlink()
    broken: dict[str, str] = {}
    note = on_kind("broken", lambda values: broken.update({values["image_id"]: values["reason"]}))
    done = train(train_config(data, tmp_path / "out", max_steps=5), note)
    assert done.step == 5
    by_file = {
        image["file_name"]: str(image["id"]) for image in json.loads((data / "train.json").read_text())["images"]
    }
    expected = {image_id for name, image_id in by_file.items() if Path(name).name in (photos[3].name, photos[7].name)}
    assert broken.keys() == expected
    assert "no such file" in broken[by_file[next(n for n in by_file if Path(n).name == photos[7].name)]]


def test_photos_whose_exif_turn_is_not_applied_are_reported(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    photo = sorted((data / "train").iterdir())[3]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).save(photo, exif=exif)  # annotated as it is stored, which is 64 x 80 px
    unturned: set[str] = set()
    note = on_kind("unturned", lambda values: unturned.add(values["image_id"]))
    train(train_config(data, tmp_path / "out", max_steps=5), note)
    images = json.loads((data / "train.json").read_text())["images"]
    assert unturned == {str(image["id"]) for image in images if Path(image["file_name"]).name == photo.name}


def test_too_many_steps_that_are_not_finite_end_the_training_and_name_their_images(shapes: Path, tmp_path: Path):
    skipped: list[list[str]] = []
    note = on_kind("non_finite", lambda values: skipped.append(values["image_ids"]))
    with pytest.raises(TrainingStopped, match=r"images of the batch: .*train\.max_non_finite_steps allows 2") as caught:
        train(train_config(shapes, tmp_path, learning_rate=100.0, max_non_finite_steps=2, max_steps=60), note)
    assert len(skipped) == 2 and all(len(ids) == 2 for ids in skipped)
    ids = {str(image["id"]) for image in json.loads((shapes / "train.json").read_text())["images"]}
    assert {name for names in skipped for name in names} <= ids and "train.learning_rate" in str(caught.value)


def test_a_start_from_a_checkpoint_takes_what_fits(shapes: Path, tmp_path: Path):
    train(train_config(shapes, tmp_path / "first", max_steps=1))
    values = to_plain(train_config(shapes, tmp_path / "second", max_steps=1))
    values["model"]["checkpoint"] = str(tmp_path / "first")
    values["train"]["learning_rate"] = 1e-12
    said: list[str] = []

    def note(kind: str, sentence: str, **values: Any) -> None:
        if kind == "start":
            said.append(sentence)

    train(TrainConfig.model_validate(values), note)
    first, second = newest_checkpoint(tmp_path / "first").state_dict, newest_checkpoint(tmp_path / "second").state_dict
    assert f"{len(first)} of {len(first)} tensors fit" in said[0]
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    values["model"]["checkpoint"] = str(tmp_path / "nowhere")
    prepare_train(TrainConfig.model_validate(values))  # it goes on, and does not need its start any more
    values["output"]["uri"] = str(tmp_path / "third")
    with pytest.raises(ValueError, match="nowhere"):
        prepare_train(TrainConfig.model_validate(values))


def test_a_fourth_channel_and_a_recorded_subset_are_trained_on(shapes: Path, tmp_path: Path):
    (tmp_path / "depth").mkdir()
    for photo in (shapes / "train").glob("*.png"):
        Image.open(photo).convert("L").save(tmp_path / "depth" / photo.name)
    config = train_config(shapes, tmp_path / "out", max_steps=1)
    spec = ModelSpec.from_dict(SPEC.to_dict() | {"in_channels": 4, "image_mean": [0.5] * 4, "image_std": [0.25] * 4})
    extra = {"extra_channels": f"{tmp_path}/depth/{{stem}}.png", "num_images": 4, "val": None}
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"spec": spec}),
            "data": config.data.model_copy(update=extra),
        }
    )
    plan = prepare_train(config)
    assert plan.subset is not None
    assert plan.num_images == plan.subset.num_images == 4 and plan.subset.of_images == 10
    train(config)
    assert newest_checkpoint(tmp_path / "out").state_dict["backbone.body.conv1.weight"].shape[1] == 4


def test_a_training_ends_at_the_earlier_of_max_steps_and_num_epochs(shapes: Path, tmp_path: Path):
    def steps(**train_values: Any) -> int:
        return steps_left(train_config(shapes, tmp_path, **train_values).train, 10, world_size=2)

    assert steps(max_steps=6, num_epochs=None) == 6
    assert steps(max_steps=6, num_epochs=1.0) == 3  # 10 images, 4 a step
    assert steps(max_steps=None, num_epochs=10) == 25


@pytest.mark.slow
def test_a_network_overfits_two_images(tmp_path: Path):
    draw_shapes(str(tmp_path), num_train=2, num_val=1, num_unlabelled=0, image_size=(96, 96), max_shapes=3)
    values = to_plain(train_config(tmp_path, tmp_path / "out", max_steps=300, data_workers=1, optimizer="adamw"))
    values["model"]["spec"] = ModelSpec.tiny(0, image_min_size=96, image_max_size=128).to_dict()
    values["data"] |= {"val": values["data"]["train"], "augment": {"horizontal_flip": 0.0}}
    values["train"] |= {"learning_rate": 1e-3, "clip_norm": 5.0, "warmup_steps": 20, "checkpoint_every_steps": 300}
    values["train"] |= {"validate_every_steps": 300, "log_every_steps": 100}
    train(TrainConfig.model_validate(values))
    (figures,) = [row for row in TrainingOutput(str(tmp_path / "out")).read_metrics() if "segm_AP" in row]
    assert figures["segm_AP"] >= 0.9


def test_class_weights_reach_the_loss_and_weights_of_1_change_nothing(shapes: Path, tmp_path: Path) -> None:
    def first_losses(name: str, weights: dict[str, float]) -> dict[str, Any]:
        values = to_plain(train_config(shapes, tmp_path / name, max_steps=1))
        values["data"]["class_weights"] = weights
        train(TrainConfig.model_validate(values))
        (row,) = TrainingOutput(str(tmp_path / name)).read_metrics()
        return {key: value for key, value in row.items() if key.startswith("loss")}

    without, ones = first_losses("without", {}), first_losses("ones", {"circle": 1.0})
    assert without == ones
    heavier = first_losses("heavier", {"circle": 9.0, "square": 9.0, "triangle": 9.0})
    assert heavier["loss_classifier"] > 1.2 * without["loss_classifier"]
    assert heavier["loss_mask"] == without["loss_mask"]
    assert "class_weights" not in "".join(newest_checkpoint(tmp_path / "heavier").state_dict)


def test_an_epoch_is_longer_with_the_images_of_rare_classes_repeated(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path), num_train=10, num_val=1, num_unlabelled=0, image_size=(48, 64), max_shapes=1)
    values = to_plain(train_config(tmp_path, tmp_path / "out", max_steps=None, num_epochs=1, log_every_steps=1))
    values["data"]["repeat_threshold"] = 1.0
    config = TrainConfig.model_validate(values)
    annotated, _ = load_training_set(config)
    num_samples = len(samples_of_epoch(config, annotated))
    plan = prepare_train(config)
    assert num_samples > 12 and plan.max_steps == -(-num_samples // 2)
    assert f"an epoch has {num_samples} images" in plan.notes[-1]
    assert train(config).step == plan.max_steps
    last = TrainingOutput(str(tmp_path / "out")).read_metrics()[-1]
    assert last["epoch"] == plan.max_steps * 2 / num_samples


class TestValidation:
    @pytest.mark.long
    def test_the_best_checkpoint_stays_and_a_cut_off_run_has_the_same_figures(self, shapes: Path, tmp_path: Path):
        options = {"validate_every_steps": 2, "num_to_keep": 1, "validate_train_images": 3, "log_every_steps": 3}

        def config(output: Path) -> TrainConfig:
            values = to_plain(train_config(shapes, output, **options))
            values["model"]["spec"]["score_threshold"] = 0.0
            return TrainConfig.model_validate(values)

        validated: list[dict[str, Any]] = []
        train(config(tmp_path / "whole"), on_kind("validation", validated.append))
        output = TrainingOutput(str(tmp_path / "whole"))
        assert [row["step"] for row in validated] == [2, 4, 6]
        assert validated[0].keys() >= {"segm_AP", "bbox_AP", "segm_AP50", "train_segm_AP", "validation_s"}
        best = json.loads((tmp_path / "whole/best.json").read_text())
        scores = {row["step"]: row["segm_AP"] for row in validated}
        assert best["step"] == max(scores, key=lambda step: (scores[step], -step))
        assert set(output.steps()) == {best["step"], 6}
        assert (tmp_path / "whole" / best["checkpoint"] / "checkpoint.json").is_file()
        runs = {path.name for path in (tmp_path / "whole/validation").iterdir()}
        assert runs == {checkpoint_name(best["step"]), checkpoint_name(6)}
        run = open_run(output.validation_run(6).uri)
        assert list(verify_run(run)) == [] and run.spec.model.sha256 == newest_checkpoint(tmp_path / "whole").sha256
        figures_of_run = evaluate_run(run, load_annotations(str(shapes / "val.json")))
        assert figures_of_run.overall("segm", "AP") == pytest.approx(validated[-1]["segm_AP"], abs=1e-6)
        classes = pd.DataFrame(output.read_classes())
        assert classes["step"].tolist() == [2, 2, 2, 4, 4, 4, 6, 6, 6]

        def cut(kind: str, sentence: str, **values: Any) -> None:
            if kind == "checkpoint" and values["step"] == 4:  # written, but not yet validated
                raise CutOff

        with pytest.raises(CutOff):
            train(config(tmp_path / "cut"), cut)
        train(config(tmp_path / "cut"))

        def figures(name: str) -> list[dict[str, Any]]:
            rows = TrainingOutput(str(tmp_path / name)).read_metrics()
            timed = ("validation_s", "images_per_s", "step_s", "data_wait_share", "peak_memory_bytes")
            return [{name: value for name, value in row.items() if name not in timed} for row in rows]

        assert figures("cut") == figures("whole")
        assert pd.DataFrame(TrainingOutput(str(tmp_path / "cut")).read_classes()).equals(classes)

    def test_validate_every_epochs_counts_images(self, shapes: Path, tmp_path: Path):
        options = {"validate_every_epochs": 0.5, "max_steps": 7, "checkpoint_every_steps": 100}  # 2 of 10 images a step
        validated: list[int] = []
        train(
            train_config(shapes, tmp_path, **options),
            on_kind("validation", lambda values: validated.append(values["step"])),
        )
        assert validated == [3, 5, 7]  # after 6, 10 and, at the end, 14 images

    def test_a_training_with_a_validation_set_validates_each_epoch_but_at_most_ten_times(
        self, shapes: Path, tmp_path: Path
    ):
        config = train_config(shapes, tmp_path, max_steps=12, validate_every_steps=None)  # 2 of 10 images a step
        validated: list[int] = []
        train(config, on_kind("validation", lambda values: validated.append(values["step"])))
        assert validated == [5, 10, 12]
        longer = config.train.model_copy(update={"max_steps": 1000})
        assert epochs_between_validations(longer, 10) == 20
        by_epochs = config.train.model_copy(update={"max_steps": None, "num_epochs": 30.0, "num_workers": 4})
        assert epochs_between_validations(by_epochs, 16) == 3

    def test_early_stopping_ends_and_finishes_a_training_that_does_not_improve(self, shapes: Path, tmp_path: Path):
        values = to_plain(train_config(shapes, tmp_path, max_steps=50, validate_every_steps=1, early_stop_patience=2))
        values["model"]["spec"]["score_threshold"] = 1.0  # nothing is ever found, so that every AP is 0
        config = TrainConfig.model_validate(values)
        done = train(config)
        assert done == LoopResult(step=4, num_non_finite=0, stopped_early=True)  # best at 1, none better at 2 and 3
        assert newest_checkpoint(tmp_path).progress["finished"]
        assert prepare_train(config).is_finished
        assert json.loads((tmp_path / "finished.json").read_text())["config_hash"] == config_hash(config)


@pytest.mark.long
def test_a_training_in_a_bucket_is_cut_off_and_goes_on(bucket: str, tmp_path: Path):
    draw_shapes(str(tmp_path), num_train=4, num_val=1, num_unlabelled=0, image_size=(48, 64), max_shapes=2)

    def config(uri: str) -> TrainConfig:
        section = {"max_steps": 4, "batch_size": 1, "data_workers": 0, "checkpoint_every_steps": 1, "num_to_keep": 2}
        return TrainConfig.model_validate(
            {
                "model": {"spec": small_spec().to_dict()},
                "data": {"train": str(tmp_path / "train.json"), "val": str(tmp_path / "val.json")},
                "train": {**section, "validate_every_steps": 2, "learning_rate": 0.01, "log_every_steps": 1},
                "output": {"uri": uri},
            }
        )

    def cut(kind: str, sentence: str, **values: Any) -> None:
        if kind == "step" and values["step"] == 4:
            raise CutOff

    train(config(str(tmp_path / "whole")))
    uri = f"{bucket}/models/one"
    with pytest.raises(CutOff):
        train(config(uri), cut)
    output = TrainingOutput(uri)
    assert output.steps() == [2, 3]
    output.storage.delete("checkpoints/step-00000003/checkpoint.json")  # a write that was cut off
    assert output.torn_names() == ["step-00000003"]
    output.write_config(to_saved(prepare_train(config(uri)).config))
    train(config(uri))

    whole, resumed = TrainingOutput(str(tmp_path / "whole")).load_newest(), output.load_newest()
    assert whole is not None and resumed is not None and whole[0] == resumed[0] == 4
    assert whole[1].sha256 == resumed[1].sha256
    assert [row["step"] for row in output.read_metrics()] == [1, 2, 2, 3, 4, 4]
    assert prepare_train(config(uri)).is_finished
    for source in (uri, output.checkpoint_uri(4)):
        assert open_checkpoint(source).sha256 == whole[1].sha256
    names = {info.key.split("/")[0] for info in output.storage.iter_objects()}
    expected = {"best.json", "checkpoints", "classes.parquet", "config.yaml", "finished.json", "metrics.parquet"}
    assert names == expected | {"tensorboard", "validation"}
