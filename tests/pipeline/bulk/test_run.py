"""The bulk run on a real Ray: every file a row, the same rows however the work is spread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.segment import prepare_segment
from pipeline.bulk import pool, run
from pipeline.bulk.commit import OtherRunError
from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run, table_key
from pipeline.masks.rle import decode_rle
from tests.pipeline.bulk.segmenting import config_of, segment, sorted_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    totals = segment(tiny_checkpoint, photos, out, "corpus.shard_size=12", "segment.num_workers=[2, 2]")
    assert totals.statuses == {"ok": 40, "unsupported_format": 1, "corrupt": 2}
    assert totals.failed_fraction == pytest.approx(3 / 43)
    return out


def test_every_file_has_one_row_and_every_mask_decodes(finished: Path, photos: Path) -> None:
    images, instances = sorted_rows(finished)
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


@pytest.mark.long
def test_the_same_rows_with_other_workers_batches_and_shards(
    finished: Path, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    segment(tiny_checkpoint, photos, tmp_path / "run", "corpus.shard_size=50", "segment.batch_size=1")
    images, instances = sorted_rows(tmp_path / "run")
    expected_images, expected = sorted_rows(finished)
    pd.testing.assert_frame_equal(images.drop(columns="shard"), expected_images.drop(columns="shard"))
    exact = ["image_id", "instance", "category", "run_id", "image_height"]
    pd.testing.assert_frame_equal(instances[exact], expected[exact])
    # Another batch size may take another kernel: the numbers agree to float32 rounding, not to the bit.
    pd.testing.assert_frame_equal(instances[["score", "x1", "y2"]], expected[["score", "x1", "y2"]], atol=1e-3)


@pytest.mark.long
def test_the_same_run_in_several_waves(
    finished: Path, tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WAVE_SHARDS", 2)  # of 4 shards: the second wave has a process of its own
    waves_here, segment_wave = [], pool.segment_wave

    def noted_wave(*arguments: Any) -> None:
        (tmp_path / f"wave_in_{os.getpid()}").touch()
        waves_here.append(os.getpid())
        segment_wave(*arguments)

    monkeypatch.setattr(run, "segment_wave", noted_wave)
    totals = segment(tiny_checkpoint, photos, tmp_path / "run", "corpus.shard_size=12", "segment.num_workers=[2, 2]")
    assert waves_here == [os.getpid()] and len(list(tmp_path.glob("wave_in_*"))) == 2
    assert totals.num_shards == 4 and totals.num_images == 43
    for table, expected in zip(sorted_rows(tmp_path / "run"), sorted_rows(finished), strict=True):
        pd.testing.assert_frame_equal(table, expected)
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []


def test_a_finished_run_is_left_as_it_is(finished: Path, tiny_checkpoint: Path, photos: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    segment(tiny_checkpoint, photos, finished, "corpus.shard_size=5")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    notes = prepare_segment(config_of(tiny_checkpoint, photos, finished, "corpus.shard_size=5")).notes
    assert notes == ["corpus.shard_size=5 is ignored: the plan was sealed with 12"]


def test_another_threshold_is_another_run(finished: Path, tiny_checkpoint: Path, photos: Path) -> None:
    with pytest.raises(OtherRunError, match=r"segment\.score_threshold +0\.05 +0\.7"):
        prepare_segment(config_of(tiny_checkpoint, photos, finished, "segment.score_threshold=0.7"))


@pytest.mark.long
def test_a_lost_shard_is_segmented_again_and_nothing_else(
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
    assert [a.attempt == b.attempt for a, b in zip(committed, again)] == [True, True, False, True]
    pd.testing.assert_frame_equal(sorted_rows(out)[1], sorted_rows(finished)[1])
    assert list(verify_run(open_run(str(out)))) == []


def test_an_empty_folder_is_a_run_without_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    totals = segment(tiny_checkpoint, tmp_path / "none", tmp_path / "run", "input.allow_empty=true")
    assert (totals.num_images, totals.num_instances, totals.failed_fraction) == (0, 0, 0.0)
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []
