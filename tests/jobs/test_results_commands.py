"""compare, history, report, export, check-data and convert, as people call them, on a small committed run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from jobs.cli import Exit, app
from pipeline.bulk.commit import claim_run, commit_shard, seal_run, write_table
from pipeline.bulk.corpus import seal_plan
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.bulk.listing import iter_corpus
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import Commit
from pipeline.masks.rle import encode_mask, rle_areas
from pipeline.storage.local import LocalStorage
from tests.paths import ROOT

runner = CliRunner()


def call(*words: object, code: Exit = Exit.DONE) -> str:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def write_run(data: Path, out: Path, *, drop_every: int, shard_size: int = 100) -> None:
    """A run over the validation images that finds the truth itself, save for every n-th object."""
    storage = LocalStorage(out)
    truth = load_annotations(str(data / "val.json"))
    categories = [{"id": category.id, "name": category.name} for category in truth.categories]
    spec = {
        "model": {"sha256": "0" * 64, "categories": categories},
        "segment": {"score_threshold": 0.05},
        "drop_every": drop_every,
    }
    run_id = claim_run(storage, spec)
    images = partial(iter_corpus, str(data / "val"))
    plan = seal_plan(storage, lambda after: images(after=after), shard_size=shard_size, num_workers=1)
    annotated = {Path(image.file_name).name: image for image in truth.images}
    for shard in range(plan.num_shards):
        results = []
        for image in plan.read_shard(shard):
            known = annotated[image.image_id]
            kept = [one for place, one in enumerate(known.instances) if drop_every == 0 or place % drop_every]
            masks = [encode_mask(one.mask(known.height, known.width)) for one in kept]
            columns: dict[str, list] = {
                "instance": list(range(len(kept))),
                "category_id": [truth.categories[one.label - 1].id for one in kept],
                "category": [truth.categories[one.label - 1].name for one in kept],
                "score": [0.9 - 0.01 * place for place in range(len(kept))],
                **{name: [float(one.box[axis]) for one in kept] for axis, name in enumerate(("x1", "y1", "x2", "y2"))},
                "area_px": rle_areas(masks).tolist(),
                "rle_counts": masks,
                "image_height": [known.height] * len(kept),
                "image_width": [known.width] * len(kept),
                "keypoints": [None] * len(kept),
            }
            results.append(ImageResult(image, "ok", None, known.height, known.width, None, columns))
        files = {
            name: write_table(storage, name, shard, "a", to_parquet(table, {}), table.num_rows)
            for name, table in zip(("images", "instances"), to_tables(results, shard=shard, run_id=run_id))
        }
        commit_shard(storage, Commit(run_id, shard, "a", **files, statuses={"ok": len(results)}, timings_s={}))
    seal_run(storage, plan, run_id, {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    draw_shapes(str(folder / "data"), num_train=2, num_val=12, num_unlabelled=1)
    write_run(folder / "data", folder / "perfect", drop_every=0)
    write_run(folder / "data", folder / "worse", drop_every=2)
    return folder


def test_evaluate_writes_keeps_and_gates(place: Path, tmp_path: Path) -> None:
    truth = f"ground_truth.uri={place / 'data' / 'val.json'}"
    kept = f"history.uri={tmp_path / 'history'}"
    text = call("evaluate", place / "perfect", truth, kept, "gate.min_ap=0.9")
    assert "AP" in text
    figures = json.loads((place / "perfect.evaluation" / "metrics.json").read_text())
    assert figures["overall"]["segm"]["AP"] == pytest.approx(1.0)
    text = call("evaluate", place / "worse", truth, kept, "gate.min_ap=0.9", code=Exit.GATE)
    assert "gate.min_ap asks for 0.9" in text
    call("evaluate", place / "perfect", truth, kept)
    text = call("history", tmp_path / "history", f"output.uri={tmp_path / 'plot'}")
    assert text.count("1.0") >= 1 and (tmp_path / "plot" / "history.png").stat().st_size > 1000
    assert "no evaluation is kept" in call("history", tmp_path / "nothing")
    text = call("history", tmp_path / "history", "history.figures=[segm recall]")
    assert "recall" in text and "AP" not in text
    words = ["history", tmp_path / "history", "history.figures=[segm AQ]"]
    assert "'segm AQ' is in no evaluation" in call(*words, code=Exit.BAD_INPUT)


def test_an_evaluation_is_kept_once_wherever_it_is_written(place: Path, tmp_path: Path) -> None:
    words = ["evaluate", place / "worse", f"ground_truth.uri={place / 'data' / 'val.json'}"]
    words += [f"history.uri={tmp_path / 'history'}"]
    for name in ("a", "b"):
        call(*words, f"output.uri={tmp_path / name}", f"history.label={name}")
    assert len(list((tmp_path / "history").glob("*.parquet"))) == 1
    call(*words, f"output.uri={tmp_path / 'c'}", "evaluate.score_threshold=0.3")
    assert len(list((tmp_path / "history").glob("*.parquet"))) == 2


@pytest.mark.parametrize("form", ["labelme", "voc"])
def test_truth_of_any_format_is_matched_by_the_names_of_its_classes(place: Path, tmp_path: Path, form: str) -> None:
    call("convert", place / "data" / "val.json", tmp_path / form, "--to", form, "convert.overlap=smaller_on_top")
    figures = []
    for truth in (tmp_path / form, place / "data" / "val.json"):
        call("evaluate", place / "worse", f"ground_truth.uri={truth}", f"output.uri={tmp_path / 'out'}")
        figures.append(json.loads((tmp_path / "out" / "metrics.json").read_text())["by_category"]["segm"])
    for name in ("circle", "square", "triangle"):
        got, want = (figure[name] for figure in figures)
        assert got["true_positives"] == want["true_positives"] > 0
        assert 0 < got["recall"] == want["recall"] < 1
    words = ["compare", place / "perfect", place / "worse", "compare.num_resamples=0"]
    assert "segm AP" in call(*words, "--ground-truth", tmp_path / form)


def test_evaluate_measures_what_else_is_asked_for(place: Path, tmp_path: Path) -> None:
    words = ["evaluate", place / "worse", f"ground_truth.uri={place / 'data' / 'val.json'}", f"output.uri={tmp_path}"]
    everything = ROOT / "configs/evaluate/everything.yaml"
    text = call(*words, "--config", everything)
    assert all(word in text for word in ("VOC_AP_11point", "Cityscapes_AP50", "by crowding", "by status", "background"))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    for kind in ("bbox", "segm"):
        assert 0 < figures["overall"][kind]["VOC_AP"] < 1
    slices = pd.read_parquet(tmp_path / "slices.parquet")
    assert set(slices["by"]) == {"size", "crowding", "overlap", "status", "height"}
    confusion = pd.read_parquet(tmp_path / "confusion.parquet").set_index("truth")
    half = figures["overall"]["segm"]
    assert confusion["background"].sum() == half["false_negatives"] > 0
    assert figures["confusion"]["counts"] == confusion.to_numpy().tolist()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluate.also=[voc2]", "evaluate.also.0: 'voc2' is not allowed: input should be 'voc', 'cityscapes' or"),
        ("evaluate.slices=[weather]", "'weather' is not allowed"),
        ("evaluate.also=[cityscapes]", "must have 'segm'"),
        ("evaluate.num_shares=2 evaluate.also=[voc]", "evaluate.num_shares is 2; allowed is 1 with voc"),
        ("gate.min_ap=0.5", "gate.min_ap is 0.5 and looks at segm AP; evaluate.iou_types is ['bbox']"),
        ("gate.max_drop=0.1", "gate.max_drop is 0.1; evaluate measures one run and has none to fall behind"),
    ],
)
def test_evaluate_refuses_what_cannot_be_had(place: Path, tmp_path: Path, word: str, message: str) -> None:
    truth = f"ground_truth.uri={place / 'data' / 'val.json'}"
    words = ["evaluate", place / "worse", truth, f"output.uri={tmp_path / 'out'}", "evaluate.iou_types=[bbox]"]
    words += word.split()
    assert message in " ".join(call(*words, code=Exit.BAD_INPUT).split())
    assert not (tmp_path / "out").exists()


def test_evaluate_in_shares_on_ray_gives_the_very_figures(place: Path, tmp_path: Path, ray_cluster: None) -> None:
    write_run(place / "data", tmp_path / "run", drop_every=3, shard_size=3)
    truth = f"ground_truth.uri={place / 'data' / 'val.json'}"
    words = ["evaluate", tmp_path / "run", truth, "evaluate.also=[confusion]"]
    call(*words, f"output.uri={tmp_path / 'whole'}")
    call(*words, f"output.uri={tmp_path / 'shares'}", "evaluate.num_shares=3")
    for name in ("metrics.json", "metrics.parquet", "confusion.parquet"):
        assert (tmp_path / "shares" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_compare_with_and_without_labels(place: Path, tmp_path: Path) -> None:
    truth = place / "data" / "val.json"
    words = ["compare", place / "perfect", place / "worse", "compare.num_resamples=20"]
    text = call(*words, "--ground-truth", truth, f"output.uri={tmp_path / 'c'}")
    assert "segm AP 1.0000 -> " in text and "worst images" in text
    assert len(pd.read_parquet(tmp_path / "c" / "images.parquet")) == 12
    text = call(*words, "--ground-truth", truth, "gate.max_drop=0.1", code=Exit.GATE)
    assert "gate.max_drop allows 0.1" in text
    text = call(*words, "--ground-truth", truth, "compare.iou_type=bbox")
    assert "bbox AP 1.0000 -> " in text
    assert "instances per image" in call(*words)
    assert "needs ground_truth.uri" in call(*words, "gate.max_drop=0.1", code=Exit.BAD_INPUT)


def test_report_and_export(place: Path, tmp_path: Path) -> None:
    call("report", place / "perfect", f"output.uri={tmp_path / 'report.html'}")
    assert (tmp_path / "report.html").read_text().startswith("<!")
    for form, name in (("coco", "coco.json"), ("yolo", "data.yaml"), ("labelme", "labelme"), ("png", "png")):
        call("export", place / "perfect", "--to", form, f"output.uri={tmp_path / form}")
        assert (tmp_path / form / name).exists()
    assert "export.to: 'voc' is not allowed" in call("export", place / "perfect", "--to", "voc", code=Exit.BAD_INPUT)


def test_check_data_and_convert(place: Path, tmp_path: Path) -> None:
    data = place / "data" / "val.json"
    assert "12 images" in call("check-data", data)
    text = call("convert", data, tmp_path / "labelme", "--to", "labelme")
    assert "12 images" in text and len(list((tmp_path / "labelme").rglob("*.json"))) == 12
    assert "is there already" in call("convert", data, tmp_path / "labelme", "--to", "labelme", code=Exit.BAD_INPUT)
    broken = json.loads(data.read_text())
    broken["annotations"][0]["category_id"] = 99
    (place / "data" / "broken.json").write_text(json.dumps(broken))
    words = ["check-data", place / "data" / "broken.json", f"data.image_root={place / 'data' / 'val'}"]
    assert "99" in call(*words, f"output.uri={tmp_path / 'found'}", code=Exit.FAILED)
    assert (tmp_path / "found" / "data_report.json").exists()
