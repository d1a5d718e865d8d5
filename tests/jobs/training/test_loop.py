"""The loop itself, one worker, in this process: what Ray adds is tested in test_train.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs.config.load import ConfigError, config_hash, to_plain
from jobs.config.train import TrainConfig
from jobs.training.loop import TrainingRun, TrainingStopped, Worker, steps_left
from jobs.training.output import TrainingOutput
from jobs.training.summary import write_summary
from jobs.training.train import check_same_training, prepare_train, run_train, to_saved
from model.checkpoint import Checkpoint
from model.presets import detectron2, torchvision_v2
from model.spec import ModelSpec
from pipeline.dataset.shapes import draw_shapes
from tests.specs import small_spec

SPEC = small_spec(channels=16, sides=(64, 80))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=10, num_val=2, num_unlabelled=0, image_size=(64, 80), max_shapes=3)
    return folder


def settings(shapes: Path, output: Path, **train: Any) -> TrainConfig:
    values = {"max_steps": 6, "batch_size": 2, "data_workers": 0, "learning_rate": 0.01, "schedule": "cosine"}
    values |= {"checkpoint_every_steps": 2, "log_every_steps": 1, "num_to_keep": None, **train}
    return TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {"train": str(shapes / "train.json"), "val": str(shapes / "val.json")},
            "train": values,
            "output": {"uri": str(output)},
        }
    )


class Stop(Exception):
    """Stands for a kill."""


def train(config: TrainConfig, on_event: Callable[..., None] = lambda kind, sentence, **values: None) -> dict[str, Any]:
    worker = Worker(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
    return TrainingRun(config, worker, on_event).run()


def newest(output: Path) -> Checkpoint:
    found = TrainingOutput(str(output)).load_newest()
    assert found is not None
    return found[1]


def assert_same_state(first: Any, second: Any, place: str = "") -> None:
    assert type(first) is type(second), place
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for name in first:
            assert_same_state(first[name], second[name], f"{place}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), place
        for index, (one, two) in enumerate(zip(first, second)):
            assert_same_state(one, two, f"{place}[{index}]")
    else:
        assert first == second, place


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adamw", "ema_decay": 0.9, "accumulate_steps": 2, "data_workers": 2}],
    ids=["sgd", "all"],
)
def test_a_run_cut_off_anywhere_ends_as_an_undisturbed_one(shapes: Path, tmp_path: Path, options: dict[str, Any]):
    train(settings(shapes, tmp_path / "whole", **options))
    whole = newest(tmp_path / "whole")

    config = settings(shapes, tmp_path / "cut", **options)
    for last_step in (1, 2, 5):  # before the first checkpoint, just after one, between two

        def cut(kind: str, sentence: str, last_step: int = last_step, **values: Any) -> None:
            if kind == "step" and values["step"] == last_step:
                raise Stop

        with pytest.raises(Stop):
            train(config, cut)
    resumed: list[int] = []
    train(config, lambda kind, sentence, **values: resumed.append(values["step"]) if kind == "resume" else None)
    assert resumed == [4]
    cut_off = newest(tmp_path / "cut")

    assert_same_state(whole.state_dict, cut_off.state_dict)
    assert_same_state(whole.training_state, cut_off.training_state)
    assert whole.progress == cut_off.progress and whole.progress["finished"]
    rows = [TrainingOutput(str(tmp_path / name)).read_metrics() for name in ("whole", "cut")]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_rows_hold_every_loss_term_and_their_sum(shapes: Path, tmp_path: Path):
    train(settings(shapes, tmp_path, max_steps=2, log_every_steps=2, warmup_steps=2, warmup_factor=0.5))
    (row,) = TrainingOutput(str(tmp_path)).read_metrics()
    terms = ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    assert row["loss"] == pytest.approx(sum(row[term] for term in terms))
    assert row["step"] == 2 and row["epoch"] == pytest.approx(0.4) and row["learning_rate"] == pytest.approx(0.0075)
    assert row["images_per_s"] > 0 and 0 <= row["data_wait_share"] <= 1 and row["peak_memory_bytes"] > 2**20


def test_torn_and_altered_checkpoints_are_set_aside_and_the_run_goes_on(shapes: Path, tmp_path: Path):
    config = settings(shapes, tmp_path)
    train(config)
    whole = newest(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000006" / "checkpoint.json").unlink()
    weights = checkpoints / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    events: list[tuple[str, str]] = []
    train(config, lambda kind, sentence, **values: events.append((kind, sentence)))
    assert [sentence for kind, sentence in events if kind == "resume"] == ["going on after step 2 of 6"]
    aside = [sentence for kind, sentence in events if kind == "set_aside"]
    assert len(aside) == 2 and "step-00000006 is incomplete" in aside[0] and "sha256 of model.safetensors" in aside[1]
    assert_same_state(whole.state_dict, newest(tmp_path).state_dict)


def test_a_broken_photo_is_named_and_training_goes_on(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    photos = sorted((data / "train").iterdir())
    photos[3].write_bytes(photos[3].read_bytes()[:200])
    photos[7].unlink()
    broken: dict[str, str] = {}
    events = lambda kind, sentence, **v: broken.update({v["image_id"]: v["reason"]}) if kind == "broken" else None  # noqa: E731
    done = train(settings(data, tmp_path / "out", max_steps=5), events)
    assert done["step"] == 5
    by_file = {
        image["file_name"]: str(image["id"]) for image in json.loads((data / "train.json").read_text())["images"]
    }
    expected = {identity for name, identity in by_file.items() if Path(name).name in (photos[3].name, photos[7].name)}
    assert broken.keys() == expected
    assert "no such file" in broken[by_file[next(n for n in by_file if Path(n).name == photos[7].name)]]


def test_photos_that_are_used_unturned_are_told(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    photo = sorted((data / "train").iterdir())[3]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).save(photo, exif=exif)  # annotated as it is stored, which is 64 x 80 px
    unturned: set[str] = set()
    events = lambda kind, sentence, **v: unturned.add(v["image_id"]) if kind == "unturned" else None  # noqa: E731
    train(settings(data, tmp_path / "out", max_steps=5), events)
    images = json.loads((data / "train.json").read_text())["images"]
    assert unturned == {str(image["id"]) for image in images if Path(image["file_name"]).name == photo.name}


def test_too_many_steps_that_are_not_finite_end_the_run_with_the_images(shapes: Path, tmp_path: Path):
    skipped: list[list[str]] = []
    events = lambda kind, sentence, **v: skipped.append(v["image_ids"]) if kind == "non_finite" else None  # noqa: E731
    with pytest.raises(TrainingStopped, match=r"images of the batch: .*train\.max_non_finite_steps allows 2") as caught:
        train(settings(shapes, tmp_path, learning_rate=100.0, max_non_finite_steps=2, max_steps=60), events)
    assert len(skipped) == 2 and all(len(ids) == 2 for ids in skipped)
    ids = {str(image["id"]) for image in json.loads((shapes / "train.json").read_text())["images"]}
    assert {name for names in skipped for name in names} <= ids and "train.learning_rate" in str(caught.value)


def test_a_start_from_a_checkpoint_takes_what_fits(shapes: Path, tmp_path: Path):
    train(settings(shapes, tmp_path / "first", max_steps=1))
    values = to_plain(settings(shapes, tmp_path / "second", max_steps=1))
    values["model"]["checkpoint"] = str(tmp_path / "first")
    values["train"]["learning_rate"] = 1e-12
    said: list[str] = []
    train(
        TrainConfig.model_validate(values),
        lambda kind, sentence, **v: said.append(sentence) if kind == "start" else None,
    )
    first, second = newest(tmp_path / "first").state_dict, newest(tmp_path / "second").state_dict
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
    config = settings(shapes, tmp_path / "out", max_steps=1)
    spec = ModelSpec.from_dict(SPEC.to_dict() | {"in_channels": 4, "image_mean": [0.5] * 4, "image_std": [0.25] * 4})
    extra = {"extra_channels": f"{tmp_path}/depth/{{stem}}.png", "num_images": 4, "val": None}
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"spec": spec}),
            "data": config.data.model_copy(update=extra),
        }
    )
    plan = prepare_train(config)
    assert plan.num_images == plan.subset.num_images == 4 and plan.subset.of_images == 10
    train(config)
    assert newest(tmp_path / "out").state_dict["backbone.body.conv1.weight"].shape[1] == 4


def test_the_length_is_the_earlier_of_steps_and_epochs(shapes: Path, tmp_path: Path):
    def steps(**train_values: Any) -> int:
        return steps_left(settings(shapes, tmp_path, **train_values).train, 10, world_size=2)

    assert steps(max_steps=6, num_epochs=None) == 6
    assert steps(max_steps=6, num_epochs=1.0) == 3  # 10 images, 4 a step
    assert steps(max_steps=None, num_epochs=10) == 25


@pytest.mark.slow
def test_it_learns_two_images_by_heart(tmp_path: Path):
    draw_shapes(str(tmp_path), num_train=2, num_val=1, num_unlabelled=0, image_size=(96, 96), max_shapes=3)
    values = to_plain(settings(tmp_path, tmp_path / "out", max_steps=300, data_workers=1, optimizer="adamw"))
    values["model"]["spec"] = ModelSpec.tiny(0, image_min_size=96, image_max_size=128).to_dict()
    values["data"] |= {"val": values["data"]["train"], "augment": {"horizontal_flip": 0.0}}
    values["train"] |= {"learning_rate": 1e-3, "clip_norm": 5.0, "warmup_steps": 20, "checkpoint_every_steps": 300}
    values["train"] |= {"validate_every_steps": 300, "log_every_steps": 100}
    train(TrainConfig.model_validate(values))
    (figures,) = [row for row in TrainingOutput(str(tmp_path / "out")).read_metrics() if "segm_AP" in row]
    assert figures["segm_AP"] >= 0.9


class TestValidation:
    def test_the_best_checkpoint_stays_and_a_cut_off_run_has_the_same_figures(self, shapes: Path, tmp_path: Path):
        options = {"validate_every_steps": 2, "num_to_keep": 1, "validate_train_images": 3, "log_every_steps": 3}

        def config(output: Path) -> TrainConfig:
            values = to_plain(settings(shapes, output, **options))
            values["model"]["spec"]["score_threshold"] = 0.0
            return TrainConfig.model_validate(values)

        validated: list[dict[str, Any]] = []
        train(config(tmp_path / "whole"), lambda kind, s, **v: validated.append(v) if kind == "validation" else None)
        output = TrainingOutput(str(tmp_path / "whole"))
        assert [v["step"] for v in validated] == [2, 4, 6]
        assert validated[0].keys() >= {"segm_AP", "bbox_AP", "segm_AP50", "train_segm_AP", "validation_s"}
        best = json.loads((tmp_path / "whole/best.json").read_text())
        scores = {v["step"]: v["segm_AP"] for v in validated}
        assert best["step"] == max(scores, key=lambda step: (scores[step], -step))
        assert set(output.steps()) == {best["step"], 6}
        assert (tmp_path / "whole" / best["checkpoint"] / "checkpoint.json").is_file()

        def cut(kind: str, sentence: str, **values: Any) -> None:
            if kind == "checkpoint" and values["step"] == 4:  # written, but not yet validated
                raise Stop

        with pytest.raises(Stop):
            train(config(tmp_path / "cut"), cut)
        train(config(tmp_path / "cut"))

        def figures(name: str) -> list[dict[str, Any]]:
            rows = TrainingOutput(str(tmp_path / name)).read_metrics()
            timed = ("validation_s", "images_per_s", "step_s", "data_wait_share", "peak_memory_bytes")
            return [{k: v for k, v in row.items() if k not in timed} for row in rows]

        assert figures("cut") == figures("whole")

    def test_epochs_may_say_when_it_is_measured(self, shapes: Path, tmp_path: Path):
        options = {"validate_every_epochs": 0.5, "max_steps": 7, "checkpoint_every_steps": 100}  # 2 of 10 images a step
        validated: list[int] = []
        note = lambda kind, s, **v: validated.append(v["step"]) if kind == "validation" else None  # noqa: E731
        train(settings(shapes, tmp_path, **options), note)
        assert validated == [3, 5, 7]  # after 6, 10 and, at the end, 14 images
        with pytest.raises(ValueError, match=r"validate_every_steps and train\.validate_every_epochs are both set"):
            settings(shapes, tmp_path, **options, validate_every_steps=3)
        without = settings(shapes, tmp_path, **options)
        without = without.model_copy(update={"data": without.data.model_copy(update={"val": None})})
        with pytest.raises(ValueError, match=r"train\.validate_every_epochs is set, but data\.val is null"):
            prepare_train(without)

    def test_it_ends_early_when_nothing_gets_better_and_then_is_finished(self, shapes: Path, tmp_path: Path):
        values = to_plain(settings(shapes, tmp_path, max_steps=50, validate_every_steps=1, early_stop_patience=2))
        values["model"]["spec"]["score_threshold"] = 1.0  # nothing is ever found, so that every AP is 0
        config = TrainConfig.model_validate(values)
        done = train(config)
        assert done == {"step": 4, "num_non_finite": 0, "stopped_early": True}  # best at 1, none better at 2 and 3
        assert newest(tmp_path).progress["finished"]
        assert prepare_train(config).is_finished
        assert json.loads((tmp_path / "finished.json").read_text())["config_hash"] == config_hash(config)

    def test_a_validation_set_with_an_unknown_category_is_refused(self, shapes: Path, tmp_path: Path):
        content = json.loads((shapes / "val.json").read_text())
        content["categories"][0]["name"] = "hexagon"
        (tmp_path / "val.json").write_text(json.dumps(content))
        values = to_plain(settings(shapes, tmp_path / "out", validate_every_steps=1))
        values["data"] |= {"val": str(tmp_path / "val.json"), "val_image_root": str(shapes / "val")}
        with pytest.raises(ValueError, match="hexagon"):
            prepare_train(TrainConfig.model_validate(values))
        values["data"]["val"] = None
        with pytest.raises(ValueError, match=r"data\.val is null"):
            prepare_train(TrainConfig.model_validate(values))


def test_the_page_and_the_curves_show_what_was_measured(shapes: Path, tmp_path: Path):
    config = settings(shapes, tmp_path, max_steps=2)
    train(config)
    output = TrainingOutput(str(tmp_path))
    write_summary(output, config, broken={"<b>7</b>": "there is no such file"})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "summary.html").read_text()
    (last,) = [row for row in output.read_metrics() if row["step"] == 2]
    assert f"{last['loss']:.4f}" in page and "&lt;b&gt;7&lt;/b&gt;" in page and "learning_rate: 0.01" in page
    assert list((tmp_path / "tensorboard").iterdir())


class TestRefusals:
    def test_a_finished_training_says_so_and_returns_without_ray(self, shapes: Path, tmp_path: Path):
        config = settings(shapes, tmp_path)
        TrainingOutput(str(tmp_path)).write_config(to_saved(prepare_train(config).config))
        train(config)
        plan = prepare_train(config)
        assert plan.is_finished and "6 of 6 steps are done" in plan.describe()
        said: list[str] = []
        result = run_train(plan, on_progress=lambda event: said.append(event.kind))
        assert result.was_finished and result.step == 6 and said == ["done"]
        assert result.checkpoint_uri.endswith("checkpoints/step-00000006")

    def test_other_settings_are_refused_field_by_field(self, shapes: Path, tmp_path: Path):
        output = TrainingOutput(str(tmp_path))
        output.write_config(to_saved(prepare_train(settings(shapes, tmp_path)).config))
        changed = settings(shapes, tmp_path, learning_rate=0.5, seed=3, log_every_steps=7)
        with pytest.raises(ValueError) as caught:
            prepare_train(changed)
        sentence = str(caught.value)
        assert "train.learning_rate: 0.01 there, 0.5 now; train.seed: 0 there, 3 now" in sentence
        assert "log_every_steps" not in sentence and str(tmp_path) in sentence
        prepare_train(settings(shapes, tmp_path, log_every_steps=7, data_workers=2))  # not what is trained

    @pytest.mark.parametrize(("schedule", "allowed"), [("constant", True), ("cosine", False)])
    def test_a_longer_training_goes_on_only_where_no_step_done_would_differ(
        self, shapes: Path, tmp_path: Path, schedule: str, allowed: bool
    ):
        output = TrainingOutput(str(tmp_path))
        output.write_config(to_saved(settings(shapes, tmp_path, schedule=schedule)))
        longer = to_saved(settings(shapes, tmp_path, schedule=schedule, max_steps=60))
        if allowed:
            check_same_training(output, longer, num_done=4, num_images=10)
        else:
            with pytest.raises(ValueError, match=r"train\.max_steps: 6 there, 60 now"):
                check_same_training(output, longer, num_done=4, num_images=10)

    def test_a_wrong_number_of_classes_and_no_data_are_refused_with_nothing_written(self, shapes: Path, tmp_path: Path):
        values = to_plain(settings(shapes, tmp_path / "out"))
        values["model"]["spec"]["num_classes"] = 7
        with pytest.raises(
            ValueError, match=r"model\.spec\.num_classes is 7, but .* 3 categories \(circle, square, tri"
        ):
            prepare_train(TrainConfig.model_validate(values))
        values["data"]["train"] = str(tmp_path / "nothing.json")
        with pytest.raises(ValueError, match=r"nothing\.json"):
            prepare_train(TrainConfig.model_validate(values))
        assert not (tmp_path / "out").exists()

    def test_norms_that_cannot_work_are_refused(self, shapes: Path, tmp_path: Path):
        values = to_plain(settings(shapes, tmp_path / "out"))
        values["model"]["spec"]["norm"] = "frozen_batch"
        with pytest.raises(ConfigError, match=r"model\.spec\.norm: 'frozen_batch' is not allowed without"):
            prepare_train(TrainConfig.model_validate(values))
        values["model"]["spec"] |= {"norm": "group", "head_norm": "sync_batch"}
        prepare_train(TrainConfig.model_validate(values))
        values["train"]["num_workers"] = 2
        with pytest.raises(ConfigError, match=r"model\.spec\.head_norm: 'sync_batch' is not allowed with several"):
            prepare_train(TrainConfig.model_validate(values))

    def test_a_preset_is_the_spec_of_a_published_network(self, shapes: Path, tmp_path: Path):
        values = to_plain(settings(shapes, tmp_path / "out"))
        values["model"] = {"preset": "mask_rcnn_R_50_FPN_3x", "spec": {"image_min_size": 640}}
        config = TrainConfig.model_validate(values)
        assert config.model.spec == detectron2("mask_rcnn_R_50_FPN_3x", num_classes=0, image_min_size=640)
        assert TrainConfig.model_validate(to_plain(config)) == config
        values["model"] = {"preset": "maskrcnn_resnet50_fpn_v2"}
        assert TrainConfig.model_validate(values).model.spec == torchvision_v2(0)
        values["model"] = {"preset": "mask_rcnn_R_51"}
        with pytest.raises(
            ValueError, match=r"no published network 'mask_rcnn_R_51'; allowed are maskrcnn_resnet50_fpn,"
        ):
            TrainConfig.model_validate(values)
