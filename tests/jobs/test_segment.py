"""`maskfleet segment`, `verify` and `retry` on a disk and in a bucket; modes, slices, extra channels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.load import ConfigError, load_config
from jobs.config.segment import SegmentConfig
from jobs.config.train import TrainConfig
from jobs.segment import SegmentPlan, file_metadata, prepare_segment, run_segment
from jobs.terminal import Exit
from jobs.training.train import prepare_train
from model.categories import Category
from model.checkpoint import load_checkpoint, save_checkpoint
from model.inference.predictor import Predictor
from model.network import build_model
from model.weights.sam import find_sam
from pipeline.bulk.commit import OtherRunError, claim_run
from pipeline.bulk.verify import verify_run
from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.photos import load_photo
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import RunError, open_run
from pipeline.run_spec import RefineSpec
from pipeline.storage.stores import open_storage
from pipeline.tables import decode_mask, load_images, load_instances
from tests.chaos.s3 import make_bucket, storage_words
from tests.jobs.drawn_runs import write_run
from tests.jobs.training.small_trainings import on_kind, train
from tests.model.weights.small_sam import build_small_sam, write_small_sam
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes
from tests.pipeline.predictors.written import write_code
from tests.specs import small_spec

pytestmark = pytest.mark.usefixtures("ray_cluster")
runner = CliRunner()


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """A folder of four images and a torn one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in [*sorted((photos / "roll-1").iterdir())[:4], photos / "torn.png"]:
        shutil.copy(path, folder)
    return folder


def call(code: Exit, *words: object) -> str:
    """What `maskfleet WORDS` prints, called in this process; its exit code must be `code`."""
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.long
def test_too_many_failures_end_with_an_exit_code_of_their_own(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    text = call(Exit.TOO_MANY_FAILED, "segment", *words, "segment.max_failed_fraction=0.1")
    assert "status: corrupt 1, ok 4" in text
    assert "20.0% of the images failed; segment.max_failed_fraction allows 10.0%" in text
    assert "5 images" in call(Exit.DONE, "segment", *words, "segment.max_failed_fraction=0.2"), "the run is finished"


def test_an_input_without_an_image_is_refused_and_leaves_nothing(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "l.csv").write_text("url\n")
    uris = [f"model.checkpoint={tiny_checkpoint}", f"output.uri={tmp_path / 'run'}"]
    empty = ([f"input.uri={tmp_path / 'none'}"], [f"input.uri={folder}", "input.pattern=*.tif"])
    for words in (*empty, [f"input.uri={tmp_path / 'l.csv'}", "input.uri_column=url"]):
        for more in (["--dry-run"], []):
            text = call(Exit.BAD_INPUT, "segment", *uris, *words, *more)
            assert "holds no image" in text and "set input.allow_empty=true" in text
    assert "has no column 'uri'" in call(Exit.BAD_INPUT, "segment", *uris, f"input.uri={tmp_path / 'l.csv'}")
    assert not (tmp_path / "run").exists(), "nothing that would refuse the corrected command"


@pytest.mark.parametrize("place", ["input.uri", "output.uri"])
def test_a_bucket_that_is_not_there_is_refused_before_anything_is_written(
    place: str, tiny_checkpoint: Path, moto: str, bucket: str
) -> None:
    """The settings of the configuration alone lead to the store: nothing else in the process does."""
    places = {"input.uri": bucket, "output.uri": f"{bucket}-out/run", place: "s3://there-is-none/x"}
    words = [f"model.checkpoint={tiny_checkpoint}", *(f"{key}={uri}" for key, uri in places.items())]
    for more in (["--dry-run"], []):
        text = call(Exit.BAD_INPUT, "segment", *words, *storage_words(moto), *more)
        assert "there is no bucket 'there-is-none'" in text
        assert place == "output.uri" or "input.uri: " in text
    assert list(open_storage(bucket).iter_objects()) == []


def test_an_output_inside_the_input_is_seen_through_links_and_spellings(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(folder)
    for out in (f"{folder}/run", f"{tmp_path}/link/run", f"file://{folder}/./run/", f"{folder}/../photos/run"):
        words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={out}"]
        text = call(Exit.BAD_INPUT, "segment", *words)
        assert "lies inside input.uri" in text


@pytest.mark.parametrize("words", [[], ["segment.num_workers=[1,2]"]])
def test_a_gpu_that_no_node_has_is_refused_and_nothing_is_written(
    words: list[str], folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plan = prepare_segment(
        segment_config(tiny_checkpoint, folder, tmp_path / "run", "segment.gpus_per_worker=1", *words)
    )
    with pytest.raises(
        ConfigError, match=r"segment\.gpus_per_worker: 1 is not allowed: the cluster has 0 GPUs, and no"
    ):
        run_segment(plan)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_since_run_segments_only_new_and_changed_images(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}"]
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'first'}")
    names = sorted(path.name for path in folder.glob("*.png"))
    shutil.copy(folder / names[0], folder / "new.png")
    shutil.copy(folder / names[0], folder / "torn.png")
    since = f"input.since_run={tmp_path / 'first'}"
    call(Exit.DONE, "segment", *words, since, f"output.uri={tmp_path / 'second'}")
    images = load_images(str(tmp_path / "second"))
    assert dict(zip(images["image_id"], images["status"])) == {"new.png": "ok", "torn.png": "ok"}
    since = f"input.since_run={tmp_path / 'second'}"
    assert "0 images" in call(Exit.DONE, "segment", *words, since, f"output.uri={tmp_path / 'third'}")


@pytest.mark.long
def test_input_and_output_may_be_buckets(
    folder: Path, tiny_checkpoint: Path, moto: str, bucket: str, tmp_path: Path
) -> None:
    """segment, verify and retry reach the buckets by the storage section alone."""
    for path in folder.iterdir():
        open_storage(bucket).write_bytes(path.name, path.read_bytes())
    storage, run = storage_words(moto), f"s3://{make_bucket(moto)}/run"
    uris = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={bucket}", f"output.uri={run}"]
    assert "corrupt 1, ok 4" in call(Exit.DONE, "segment", *uris, *storage)
    assert "exact" in call(Exit.DONE, "verify", run, *storage)
    open_storage(bucket).write_bytes("torn.png", (folder / "torn.png").read_bytes() + b"again")
    statuses = 'retry.statuses=["corrupt"]'
    assert "repaired shards: changed 1" in call(Exit.DONE, "retry", run, *storage, statuses)
    assert "exact" in call(Exit.DONE, "verify", run, *storage)
    assert load_images(run).set_index("image_id").loc["torn.png", "status"] == "changed"


@pytest.mark.long
def test_fast_mode_is_another_run(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    fast = ["segment.mode=fast", "segment.precision=bfloat16"]
    text = call(Exit.DONE, "segment", *words, *fast, "--profile")
    assert "profile: 5 images" in text
    seconds = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("  ")}
    assert all(float(seconds[stage]) > 0 for stage in ("predict", "write", "decode")), text
    assert {"fetch", "encode", "wait_for_images"} <= seconds.keys()
    images = load_images(str(tmp_path / "run"))
    assert images["status"].value_counts().to_dict() == {"ok": 4, "corrupt": 1} and images["num_instances"].sum() > 0
    result = runner.invoke(app, ["segment", *words])
    assert result.exit_code == Exit.BAD_INPUT
    lines = [line.split() for line in result.output.splitlines()]
    assert ["segment.mode", '"fast"', '"exact"'] in lines
    assert ["segment.precision", '"bfloat16"', '"float32"'] in lines


def planned_engine(*words: object) -> str:
    """The engine of the run that a segment command would begin or resume."""
    return prepare_segment(load_config(SegmentConfig, None, [str(word) for word in words])).spec.segment.engine


def test_a_run_keeps_its_engine_and_precision_whatever_auto_would_take(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a run of before there were engines, whose run.json names none."""
    pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
    run = tmp_path / "run"
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={run}"]
    for engine in ("openvino", "torch"):
        monkeypatch.setattr("jobs.segment.native_engine", lambda precision, device, engine=engine: engine)
        assert planned_engine(*words) == engine
    before = prepare_segment(load_config(SegmentConfig, None, words))
    claim_run(open_storage(str(run)), before.spec.to_json())
    assert "engine" not in json.loads((run / "run.json").read_text())["segment"]
    monkeypatch.setattr("jobs.segment.native_engine", lambda precision, device: "openvino")
    monkeypatch.setattr("jobs.segment.native_precision", lambda mode, device: ("bfloat16", None))
    resumed = prepare_segment(load_config(SegmentConfig, None, words))
    assert resumed.run_id == before.run_id and resumed.spec.segment.precision == "float32"
    text = call(Exit.BAD_INPUT, "segment", *words, "segment.engine=openvino")
    assert ["segment.engine", '"openvino"'] in [[*line.split()[:1], *line.split()[-1:]] for line in text.splitlines()]

    words[-1] = f"output.uri={tmp_path / 'other'}"
    other = prepare_segment(
        load_config(SegmentConfig, None, [*words, "segment.engine=openvino", "segment.precision=float32"])
    )
    claim_run(open_storage(str(tmp_path / "other")), other.spec.to_json())
    monkeypatch.setattr("jobs.segment.native_engine", lambda precision, device: "torch")
    assert planned_engine(*words) == "openvino"
    assert json.loads(file_metadata(other)["maskfleet.config"])["segment"]["engine"] == "openvino"
    text = call(Exit.BAD_INPUT, "segment", *words, "segment.gpus_per_worker=1")
    assert "segment.gpus_per_worker: 1 is not allowed: the run computes with openvino, which uses CPUs only" in text
    monkeypatch.setattr("jobs.segment.is_installed", lambda: False)
    assert "openvino is not installed here" in call(Exit.BAD_INPUT, "segment", *words)
    document = other.spec.to_json()
    document["segment"]["engine"] = "warp"
    (tmp_path / "other" / "run.json").write_text(json.dumps(document))
    assert "the run has 'warp'; allowed in this version is torch or openvino" in call(Exit.BAD_INPUT, "segment", *words)
    document["segment"] |= {"engine": "torch", "precision": "int4"}
    (tmp_path / "other" / "run.json").write_text(json.dumps(document))
    assert "segment.precision: the run has 'int4'; allowed in this version" in call(Exit.BAD_INPUT, "segment", *words)


@pytest.mark.long
def test_a_run_with_openvino_has_the_rows_of_torch_and_is_tried_again_with_it(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}"]
    for engine in ("torch", "openvino"):
        call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / engine}", f"segment.engine={engine}")
    ours, reference = (
        load_instances(str(tmp_path / engine)).sort_values(["image_id", "instance"], ignore_index=True)
        for engine in ("openvino", "torch")
    )
    assert len(ours) == len(reference) > 0 and ours["category"].equals(reference["category"])
    np.testing.assert_allclose(ours[["x1", "y1", "x2", "y2"]], reference[["x1", "y1", "x2", "y2"]], rtol=0, atol=0.01)
    np.testing.assert_allclose(ours["score"], reference["score"], rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "openvino" / "run.json").read_text())["segment"]["engine"] == "openvino"
    assert "corrupt" in call(Exit.DONE, "retry", tmp_path / "openvino", 'retry.statuses=["corrupt"]')
    assert "exact" in call(Exit.DONE, "verify", tmp_path / "openvino")


@pytest.mark.long
def test_scaled_decoding_keeps_sizes_and_boxes_of_the_original(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An image of twice the size that the network resizes to, decoded whole and at half its size."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8))
    folder = tmp_path / "photos"
    folder.mkdir()
    coarse.resize((768, 512), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", "segment.score_threshold=0.3"]
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'whole'}")
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'scaled'}", "decode.scaled=true")
    whole, scaled = (load_instances(str(tmp_path / name)).sort_values("instance") for name in ("whole", "scaled"))
    image = load_images(str(tmp_path / "scaled")).iloc[0]
    assert (image["height"], image["width"]) == (512, 768)
    assert len(whole) > 0 and abs(len(scaled) - len(whole)) <= max(2, len(whole) // 5)
    assert (scaled["image_height"] == 512).all() and scaled["x2"].max() > 384, "boxes of the original"
    best = whole.iloc[0]
    distance = (scaled[["x1", "y1", "x2", "y2"]] - best[["x1", "y1", "x2", "y2"]].astype(float)).abs().max(axis=1)
    assert distance.min() < 8


@pytest.mark.long
def test_a_huge_image_is_sliced_and_its_instances_are_in_the_same_tables(tiny_checkpoint: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("huge.png", (300, 200)), ("small.png", (96, 64))):
        coarse = Image.fromarray(random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        coarse.resize(size, Image.Resampling.NEAREST).save(folder / name)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    call(Exit.DONE, "segment", *words, "segment.slice.size=128", "segment.slice.overlap=32")
    call(Exit.DONE, "verify", tmp_path / "run")
    images = load_images(str(tmp_path / "run")).set_index("image_id")
    assert images.loc["huge.png", ["status", "height", "width"]].tolist() == ["ok", 200, 300]
    instances = load_instances(str(tmp_path / "run"))
    huge = instances[instances["image_id"] == "huge.png"]
    assert len(huge) > (instances["image_id"] == "small.png").sum() > 0
    assert huge["x2"].max() > 270 and huge["y2"].max() > 180 and huge["x1"].min() < 30
    mask = decode_mask(huge.iloc[0])
    assert mask.shape == (200, 300) and mask.sum() == huge.iloc[0]["area_px"]
    assert "segment.slice" in runner.invoke(app, ["segment", *words]).output


OWN = """
    import os

    import numpy as np

    from maskfleet import Category, Instances


    class Own:
        # Everything but the background, as one instance of the first class; nothing while its service is away.
        def __init__(self, categories, service):
            self.categories = [Category(number, name) for number, name in categories]
            self.service = service

        def predict(self, images):
            if not os.path.exists(self.service):
                raise ConnectionError("the service is away")
            masks = [np.abs(image.astype(int) - image[0, 0]).sum(axis=2) > 60 for image in images]
            return [Instances(scores=[0.9], labels=[1], masks=[mask]) for mask in masks]
"""


def test_files_name_younger_settings_only_where_they_are_used(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    def written(*words: str) -> dict[str, object]:
        plan = prepare_segment(segment_config(tiny_checkpoint, folder, tmp_path / "run", *words))
        return json.loads(file_metadata(plan)["maskfleet.config"])["segment"]

    name = load_checkpoint(tiny_checkpoint).categories[0].name
    assert not [key for key in written() if "predictor" in key or key == "score_thresholds"]
    assert written(f"segment.score_thresholds.{name}=0.5")["score_thresholds"] == {name: 0.5}
    assert not {"refine", "engine"} & written("segment.engine=torch").keys()


def test_sam_is_part_of_what_a_run_is_and_its_place_is_not(
    tiny_checkpoint: Path, small_sam: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(*words: str) -> SegmentPlan:
        return prepare_segment(segment_config(tiny_checkpoint, folder, tmp_path / "run", *words))

    plain, refined = prepared(), prepared(f"segment.refine.model={small_sam}")
    refine = refined.spec.segment.refine
    assert plain.spec.segment.refine is None and plain.run_id != refined.run_id
    assert refine is not None and (refine.kind, refine.name, refine.revision) == ("sam", "", "")
    assert "refine" not in plain.spec.to_json()["segment"]
    elsewhere = shutil.copytree(small_sam, tmp_path / "elsewhere")
    assert prepared(f"segment.refine.model={elsewhere}", "segment.refine.batch_size=3").run_id == refined.run_id
    write_small_sam(elsewhere, build_small_sam(seed=1))
    assert prepared(f"segment.refine.model={elsewhere}").run_id != refined.run_id
    monkeypatch.chdir(tmp_path)
    written = json.loads(file_metadata(prepared("segment.refine.model=elsewhere"))["maskfleet.config"])
    assert written["segment"]["refine"] == {"model": str(elsewhere), "revision": None, "batch_size": 32}
    fast = prepared(f"segment.refine.model={small_sam}", "segment.mode=fast")
    assert not fast.spec.decode.scaled, "SAM gets whole images"


def test_a_run_goes_on_with_the_commit_of_the_hub_that_it_was_begun_with(
    tiny_checkpoint: Path, small_sam: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client does it, whose cache names a folder by its commit."""
    import huggingface_hub

    commits = {"main": "a" * 40, "v1": "b" * 40}

    asked: list[object] = []

    def snapshot_download(name: str, revision: str | None = None, **more: object) -> str:
        asked.append(more["local_files_only"])
        commit = commits.get(revision or "main", revision)
        return str(shutil.copytree(small_sam, tmp_path / "hub" / str(commit), dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    def prepared(*words: str) -> SegmentPlan:
        name = "segment.refine.model=facebook/sam-vit-base"
        return prepare_segment(segment_config(tiny_checkpoint, folder, tmp_path / "run", name, *words))

    plan = prepared()
    assert plan.spec.segment.refine is not None and plan.spec.segment.refine.revision == "a" * 40
    assert plan.model.endswith("tiny and SAM facebook/sam-vit-base " + plan.spec.segment.refine.sha256[:12])
    written = json.loads(file_metadata(plan)["maskfleet.config"])["segment"]["refine"]
    assert (written["model"], written["revision"]) == ("facebook/sam-vit-base", "a" * 40)
    claim_run(open_storage(str(tmp_path / "run")), plan.spec.to_json())
    commits["main"] = "c" * 40
    assert prepared().run_id == plan.run_id, "the hub has a newer commit"
    assert asked == [False, True], "which is not asked for the one that the run has"
    with pytest.raises(OtherRunError, match=r"segment\.refine\.revision"):
        prepared("segment.refine.revision=v1")


def test_a_run_since_one_with_other_masks_is_noted(
    tiny_checkpoint: Path, small_sam: Path, folder: Path, tmp_path: Path
) -> None:
    draw_shapes(str(tmp_path / "data"), num_train=0, num_val=2, num_unlabelled=0, image_size=(64, 96))
    refine = RefineSpec(sha256=find_sam(str(small_sam)).sha256)
    write_run(tmp_path / "data", tmp_path / "plain", drop_every=0)
    write_run(tmp_path / "data", tmp_path / "refined", drop_every=0, refine=refine)

    def notes(since: str, *words: str) -> str:
        earlier = f"input.since_run={tmp_path / since}"
        return " ".join(
            prepare_segment(segment_config(tiny_checkpoint, folder, tmp_path / "run", earlier, *words)).notes
        )

    sam = f"segment.refine.model={small_sam}"
    assert "plain are not refined; read as one, the runs have masks of both kinds" in notes("plain", sam)
    assert f"refined are made anew by {refine.title}; read as one" in notes("refined")
    assert "masks" not in notes("plain") + notes("refined", sam)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nothing", "segment.refine.model: '{}/nothing' is not a folder; allowed is a folder of SAM's weights, or the"),
        ("photos", "segment.refine.model: {}/photos has no config.json; allowed is a folder as SamModel.save_pretra"),
        (
            "s3://bucket/sam",
            "segment.refine.model: 's3://bucket/sam' is not allowed: a folder is meant, or OWNER/NAME on",
        ),
        (
            "https://host/o/sam",
            "segment.refine.model: 'https://host/o/sam' is not allowed: a folder is meant, or OWNER/N",
        ),
        (
            "https://host/a?sig=planted",
            "segment.refine.model: a folder is meant, or OWNER/NAME on the Hugging Face hub",
        ),
    ],
)
def test_what_is_no_sam_is_refused_before_anything_is_written(
    model: str, reason: str, tiny_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    text = call(Exit.BAD_INPUT, "segment", *words, f"segment.refine.model={model}")
    assert reason.format(tmp_path) in " ".join(text.split()) and not (tmp_path / "run").exists()


def test_sam_takes_three_channels_only(small_sam: Path, folder: Path, tmp_path: Path) -> None:
    spec = DEPTH_SPEC.replace(num_classes=1)
    save_checkpoint(
        tmp_path / "depth", model=build_model(spec), spec=spec, categories=(Category(1, "box"),), progress={}
    )
    config = segment_config(tmp_path / "depth", folder, tmp_path / "run", f"segment.refine.model={small_sam}")
    with pytest.raises(ConfigError, match="SAM takes images of 3 channels; the model takes 4"):
        prepare_segment(config)


@pytest.mark.long
def test_a_refined_run_has_the_same_instances_with_other_masks(
    tiny_checkpoint: Path, small_sam: Path, folder: Path, tmp_path: Path
) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", "segment.cpus_per_worker=1"]
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'plain'}")
    refine = f"segment.refine.model={small_sam}"
    call(Exit.DONE, "segment", *words, refine, f"output.uri={tmp_path / 'refined'}")
    call(Exit.DONE, "verify", tmp_path / "refined")
    plain, refined = (load_instances(str(tmp_path / name)) for name in ("plain", "refined"))
    masks = ["rle_counts", "area_px", "run_id"]
    order = ["image_id", "instance"]
    pd.testing.assert_frame_equal(
        plain.sort_values(order, ignore_index=True).drop(columns=masks),
        refined.sort_values(order, ignore_index=True).drop(columns=masks),
    )
    assert (plain["rle_counts"].to_numpy() != refined["rle_counts"].to_numpy()).any()
    assert "segment.refine" in call(Exit.BAD_INPUT, "segment", *words, f"output.uri={tmp_path / 'refined'}")
    assert "corrupt 1" in call(Exit.DONE, "retry", tmp_path / "refined", 'retry.statuses=["corrupt"]')
    small = ("segment.slice.size=64", "segment.slice.overlap=16")
    call(Exit.DONE, "segment", *words, refine, *small, f"output.uri={tmp_path / 'sliced'}")
    call(Exit.DONE, "verify", tmp_path / "sliced")
    compared = call(Exit.DONE, "compare", tmp_path / "plain", tmp_path / "refined")
    assert "masks of run_b: made anew by SAM" in compared


@pytest.mark.long
def test_a_worker_that_finds_another_sam_ends_the_run_in_one_sentence(
    tiny_checkpoint: Path, small_sam: Path, folder: Path, tmp_path: Path
) -> None:
    changing = shutil.copytree(small_sam, tmp_path / "sam")
    plan = prepare_segment(
        segment_config(tiny_checkpoint, folder, tmp_path / "run", f"segment.refine.model={changing}")
    )
    write_small_sam(changing, build_small_sam(seed=1))
    with pytest.raises(
        RunError, match=r"segment\.refine\.model: the weights of .* are .* here, the run was begun with"
    ):
        run_segment(plan)
    shutil.copytree(small_sam, changing, dirs_exist_ok=True)
    assert run_segment(plan).num_images == 5


@pytest.mark.long
def test_a_run_of_a_predictor_of_the_users_own_is_a_run_like_any_other(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "data"), num_train=0, num_val=4, num_unlabelled=0, image_size=(64, 96))
    truth, run, service = tmp_path / "data/val.json", tmp_path / "run", tmp_path / "service"
    classes = [[category.id, category.name] for category in load_annotations(str(truth)).categories]
    words = ["segment.predictor=own:Own", f"segment.predictor_path={write_code(tmp_path / 'code', own=OWN)}"]
    words += [f"segment.predictor_settings={json.dumps({'categories': classes, 'service': str(service)})}"]
    words += [f"input.uri={tmp_path / 'data/val'}", f"output.uri={run}", "segment.cpus_per_worker=1"]
    assert "status: predict_failed 4" in call(Exit.DONE, "segment", *words)
    images = load_images(str(run))
    assert set(images["error"]) == {"ConnectionError: the service is away"}
    service.touch()
    assert "try 4 images of run" in call(Exit.DONE, "retry", run, "--dry-run")
    assert "repaired shards: ok 4" in call(Exit.DONE, "retry", run)
    assert "is exact: 4 images, 4 instances, 1 repair\n" in call(Exit.DONE, "verify", run)
    instances = load_instances(str(run))
    assert set(instances["category"]) == {classes[0][1]} and len(instances) == 4
    assert decode_mask(instances.iloc[0]).sum() == instances.iloc[0]["area_px"] > 0
    assert "AP" in call(Exit.DONE, "evaluate", run, f"ground_truth.uri={truth}", f"output.uri={tmp_path / 'figures'}")
    call(Exit.DONE, "report", run, f"output.uri={tmp_path / 'report.html'}")
    assert "own:Own" in (tmp_path / "report.html").read_text()
    call(Exit.DONE, "export", run, "export.to=coco", f"output.uri={tmp_path / 'coco'}")
    call(Exit.DONE, "compare", run, run)
    assert "model.predictor.settings.service" in call(
        Exit.BAD_INPUT, "segment", *words, "segment.predictor_settings.service=/elsewhere"
    )


# -- networks of more than three channels, from training with validation to a bulk run

DEPTH_PATTERN = "{folder}/../depth/{stem}.png"
DEPTH_SPEC = small_spec(in_channels=4, image_mean=(0.5,) * 4, image_std=(0.25,) * 4, score_threshold=0.0)


@pytest.fixture(scope="module")
def depth_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn shapes; the depth beside them is 16 bits deep and says where an object is."""
    folder = tmp_path_factory.mktemp("deep")
    draw_shapes(str(folder), num_train=4, num_val=3, num_unlabelled=0, image_size=(48, 64), max_shapes=2)
    (folder / "depth").mkdir()
    for name in ("train", "val"):
        for image in load_annotations(str(folder / f"{name}.json")).images:
            depth = np.full((image.height, image.width), 40_000, np.uint16)
            for instance in image.instances:
                depth[instance.mask(image.height, image.width) > 0] = 10_000
            Image.fromarray(depth).save(folder / "depth" / f"{image.path.stem}.png")
    return folder


@pytest.fixture(scope="module")
def depth_training(depth_data: Path) -> Path:
    """The output of a short training, with validation, on four channels."""
    config = TrainConfig.model_validate(
        {
            "model": {"spec": DEPTH_SPEC.to_dict()},
            "data": {
                "train": str(depth_data / "train.json"),
                "val": str(depth_data / "val.json"),
                "extra_channels": DEPTH_PATTERN,
            },
            "train": {"max_steps": 2, "data_workers": 0, "validate_every_steps": 2, "learning_rate": 0.001},
            "output": {"uri": str(depth_data / "training")},
        }
    )
    broken: list[str] = []
    train(prepare_train(config).config, on_kind("broken", lambda values: broken.append(values["image_id"])))
    assert broken == []
    rows = pd.read_parquet(depth_data / "training/metrics.parquet")
    assert "segm_AP" in rows.columns, "the validation has read the depth too"
    return depth_data / "training"


def segment_config(checkpoint: Path, photos: Path, out: Path, *words: str) -> SegmentConfig:
    uris = [f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}"]
    return load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", "segment.score_threshold=0", *uris, *words])


@pytest.mark.long
def test_a_photo_and_its_depth_are_trained_on_and_segmented(
    depth_training: Path, depth_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    plan = prepare_segment(
        segment_config(depth_training, depth_data / "val", out, f"input.extra_channels={DEPTH_PATTERN}")
    )
    assert run_segment(plan).statuses == {"ok": 3}
    assert list(verify_run(open_run(str(out)))) == []

    checkpoint = load_checkpoint(plan.checkpoint)
    predictor = Predictor(checkpoint.build(), checkpoint.spec)
    instances = pd.read_parquet(out / "instances").sort_values(["image_id", "instance"])
    assert len(instances) > 3
    for image in with_extra_channels(load_annotations(str(depth_data / "val.json")), DEPTH_PATTERN).images:
        (expected,) = predictor.predict([load_photo(image, in_channels=4)[0]])
        rows = instances[instances["image_id"] == image.path.name]
        np.testing.assert_allclose(rows["score"], expected.scores, atol=1e-4)
        np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]], expected.boxes, atol=0.05)


@pytest.mark.long
def test_a_photo_without_its_depth_has_a_row_that_says_so(
    depth_training: Path, depth_data: Path, tmp_path: Path
) -> None:
    plan = prepare_segment(segment_config(depth_training, depth_data / "val", tmp_path / "run"))
    assert run_segment(plan).statuses == {"unsupported_format": 3}
    errors = pd.read_parquet(tmp_path / "run/images")["error"]
    assert set(errors) == {"it has 3 bands; 4 are wanted"}


@pytest.mark.long
def test_files_of_many_bands_are_segmented(tmp_path: Path) -> None:
    spec = DEPTH_SPEC.replace(num_classes=1, in_channels=5, image_mean=(0.5,) * 5, image_std=(0.25,) * 5)
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, model=build_model(spec), spec=spec, categories=[Category(1, "field")], progress={})
    (tmp_path / "tiles").mkdir()
    for i in range(3):
        bands = random_bands("u2", 5, 48, 40 + i)
        (tmp_path / f"tiles/{i}.tif").write_bytes(tiff_bytes(bands, tile=16, planar=True, deflate=True))
    (tmp_path / "tiles/rgb.tif").write_bytes(tiff_bytes(random_bands("u1", 3)))
    totals = run_segment(prepare_segment(segment_config(checkpoint, tmp_path / "tiles", tmp_path / "run")))
    assert totals.statuses == {"ok": 3, "unsupported_format": 1}
    images = pd.read_parquet(tmp_path / "run/images").set_index("image_id")
    assert images.loc["1.tif", ["height", "width"]].tolist() == [48, 41]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["input.extra_channels=depth.png"], r"input\.extra_channels: the pattern 'depth.png' must have \{stem\}"),
        (["input.extra_channels={stem}.png", "input.kind=tars"], r"input\.extra_channels: not allowed with tar files"),
    ],
)
def test_impossible_patterns_of_extra_channels_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepare_segment(segment_config(tiny_checkpoint, tmp_path, tmp_path.with_name("run"), *words))
