"""The bulk run on a real Ray: every file a row, the same rows however the work is spread."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import bulk_job, failed_fraction, prepare_retry, prepare_segment, run_retry, run_segment
from pipeline.bulk import run
from pipeline.bulk.commit import OtherRunError
from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run, table_key
from pipeline.masks.rle import decode_rle
from pipeline.tables import load_images, load_instances
from tests.pipeline.bulk.faulty_predictors import DemandingPredictor

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(checkpoint: Path, photos: Path, out: Path, *words: str) -> SegmentConfig:
    places = [f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}"]
    return load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", *places, *words])


def segment(checkpoint: Path, photos: Path, out: Path, *words: str) -> dict:
    return run_segment(prepare_segment(config_of(checkpoint, photos, out, *words)))


def rows(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    images = pd.read_parquet(out / "images").sort_values("image_id", ignore_index=True)
    instances = pd.read_parquet(out / "instances").sort_values(["image_id", "instance"], ignore_index=True)
    return images, instances


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    totals = segment(tiny_checkpoint, photos, out, "corpus.shard_size=12", "segment.num_workers=[2, 2]")
    assert totals["statuses"] == {"ok": 40, "unsupported_format": 1, "corrupt": 2}
    assert failed_fraction(totals) == pytest.approx(3 / 43)
    return out


def test_every_file_has_one_row_and_every_mask_decodes(finished: Path, photos: Path) -> None:
    images, instances = rows(finished)
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file())
    assert images["image_id"].tolist() == files
    assert len(instances) == images["num_instances"].sum() > 100
    assert set(zip(instances["category_id"], instances["category"])) <= {(1, "circle"), (4, "square"), (7, "triangle")}
    for row in instances.sample(50, random_state=0).itertuples():
        mask = decode_rle(row.rle_counts, row.image_height, row.image_width)
        assert mask.sum() == row.area_px
        assert 0 <= row.x1 <= row.x2 <= row.image_width and 0 <= row.y1 <= row.y2 <= row.image_height
    for _, group in instances.groupby("image_id"):
        assert group["score"].is_monotonic_decreasing and group["instance"].tolist() == list(range(len(group)))
    assert list(verify_run(open_run(str(finished)))) == []


def test_actors_start_with_their_malloc_told(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    plan = prepare_segment(config_of(tiny_checkpoint, photos, tmp_path / "run", "segment.num_workers=[1, 1]"))
    totals = run.segment_corpus(dataclasses.replace(bulk_job(plan), predictor=DemandingPredictor))
    assert totals["statuses"]["ok"] == 40


def test_the_same_rows_with_other_workers_batches_and_shards(
    finished: Path, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    segment(tiny_checkpoint, photos, tmp_path / "run", "corpus.shard_size=50", "segment.batch_size=1")
    images, instances = rows(tmp_path / "run")
    expected_images, expected = rows(finished)
    pd.testing.assert_frame_equal(images.drop(columns="shard"), expected_images.drop(columns="shard"))
    exact = ["image_id", "instance", "category", "run_id", "image_height"]
    pd.testing.assert_frame_equal(instances[exact], expected[exact])
    # Another batch size may take another kernel: the numbers agree to float32 rounding, not to the bit.
    pd.testing.assert_frame_equal(instances[["score", "x1", "y2"]], expected[["score", "x1", "y2"]], atol=1e-3)


def test_the_same_run_in_several_waves(
    finished: Path, tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WAVE_SHARDS", 2)  # of 4 shards: the second wave has a process of its own
    processes, segment_wave = [], run.segment_wave

    def noted(*words: Any) -> None:
        (tmp_path / f"wave_in_{os.getpid()}").touch()
        processes.append(os.getpid())
        segment_wave(*words)

    monkeypatch.setattr(run, "segment_wave", noted)
    totals = segment(tiny_checkpoint, photos, tmp_path / "run", "corpus.shard_size=12", "segment.num_workers=[2, 2]")
    assert processes == [os.getpid()] and len(list(tmp_path.glob("wave_in_*"))) == 2
    assert totals["num_shards"] == 4 and totals["num_images"] == 43
    for ours, expected in zip(rows(tmp_path / "run"), rows(finished), strict=True):
        pd.testing.assert_frame_equal(ours, expected)
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []


def test_a_finished_run_is_left_as_it_is(finished: Path, tiny_checkpoint: Path, photos: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    segment(tiny_checkpoint, photos, finished, "corpus.shard_size=5")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    notes = prepare_segment(config_of(tiny_checkpoint, photos, finished, "corpus.shard_size=5")).notes
    assert notes == ["corpus.shard_size=5 is ignored: the plan was sealed with 12"]


def test_another_threshold_is_another_run(finished: Path, tiny_checkpoint: Path, photos: Path) -> None:
    with pytest.raises(OtherRunError, match=r"segment\.score_threshold: 0\.05 there, 0\.7 here"):
        prepare_segment(config_of(tiny_checkpoint, photos, finished, "segment.score_threshold=0.7"))


def test_a_lost_shard_is_done_again_and_nothing_else(
    finished: Path, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    segment(tiny_checkpoint, photos, out, "corpus.shard_size=12")
    committed = open_run(str(out)).files
    for name in ("manifest.parquet", "final.json", "commits/000000/000000002.json"):
        (out / name).unlink()
    (out / table_key("instances", 1, "dead")).write_bytes(b"half a fi")
    segment(tiny_checkpoint, photos, out, "corpus.shard_size=12")
    again = open_run(str(out)).files
    assert [a["attempt"] == b["attempt"] for a, b in zip(committed, again)] == [True, True, False, True]
    pd.testing.assert_frame_equal(rows(out)[1], rows(finished)[1])
    assert list(verify_run(open_run(str(out)))) == []


def test_retry_repairs_beside_the_run(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i, source in enumerate(sorted(photos.rglob("roll-*/*.png"))[:6]):
        shutil.copy(source, folder / f"{i}.png")
    (folder / "later.png").symlink_to(tmp_path / "arrives-later.png")
    segment(tiny_checkpoint, folder, out, "corpus.shard_size=4")
    sealed = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    before = load_images(str(out)).set_index("image_id")
    assert before.loc["later.png", "status"] == "not_found"

    shutil.copy(folder / "0.png", tmp_path / "arrives-later.png")
    assert run_retry(prepare_retry(str(out), [])) == {"ok": 3}, "the shard of three that held it"
    after = load_images(str(out)).set_index("image_id")
    assert (after["status"] == "ok").all() and after.index.tolist() == before.index.tolist()
    instances = load_instances(str(out)).sort_values(["image_id", "instance"])
    copies = [instances[instances["image_id"] == name].drop(columns="image_id") for name in ("0.png", "later.png")]
    assert len(copies[0]) > 0
    pd.testing.assert_frame_equal(*(copy.reset_index(drop=True) for copy in copies), atol=1e-3)

    assert {path: path.read_bytes() for path in sealed} == sealed, "nothing sealed was touched"
    pd.testing.assert_frame_equal(rows(out)[0].set_index("image_id"), before.sort_index(), check_like=True)
    assert list(verify_run(open_run(str(out)))) == []
    assert run_retry(prepare_retry(str(out), [])) == {}, "nothing is left to try"
    damaged = next(out.glob("repairs/0001/instances/*/*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"?" + damaged.read_bytes()[-8:])
    assert [fault.key for fault in verify_run(open_run(str(out)))] == [damaged.relative_to(out).as_posix()]


def test_an_empty_folder_is_a_run_without_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    totals = segment(tiny_checkpoint, tmp_path / "none", tmp_path / "run")
    assert (totals["num_images"], totals["num_instances"], failed_fraction(totals)) == (0, 0, 0.0)
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []
