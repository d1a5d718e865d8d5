"""Single photos: the rows are those of a bulk run, in the photos' order, and a bad photo is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint
from pipeline.bulk.photos import PhotoError, PhotoPredictor, to_frames
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from tests.pipeline.bulk.segmenting import segment, sorted_rows

NOISE = np.random.default_rng(5).integers(0, 256, (2, 64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> PhotoPredictor:
    return PhotoPredictor(load_checkpoint(tiny_checkpoint), score_threshold=0.05, max_detections=5)


def test_a_file_and_its_pixels_give_the_same_rows(predictor: PhotoPredictor, tmp_path: Path) -> None:
    Image.fromarray(NOISE[0]).save(tmp_path / "noise.png")
    from_file = predictor(tmp_path / "noise.png")
    assert list(from_file.columns) == INSTANCES_SCHEMA.names
    assert len(from_file) and set(from_file["image_id"]) == {str(tmp_path / "noise.png")}
    assert from_file["score"].is_monotonic_decreasing
    for pixels in (NOISE[0], Image.fromarray(NOISE[0])):
        pd.testing.assert_frame_equal(
            predictor(pixels).drop(columns="image_id"), from_file.drop(columns="image_id"), check_exact=True
        )


def test_photos_are_turned_upright(predictor: PhotoPredictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    Image.fromarray(NOISE[0]).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    rows = predictor(tmp_path / "turned.png")
    assert set(zip(rows["image_height"], rows["image_width"])) == {(64, 96)}
    pd.testing.assert_frame_equal(rows.drop(columns="image_id"), predictor(NOISE[0]).drop(columns="image_id"))


def test_rows_keep_the_order_of_the_photos(predictor: PhotoPredictor, tmp_path: Path) -> None:
    for name in ("b", "a"):
        Image.fromarray(NOISE[0]).save(tmp_path / f"{name}.png")
    names = [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    rows = predictor([*names, NOISE[1]])
    assert list(rows["image_id"].unique()) == [*names, "2"]
    assert all(list(part["instance"]) == list(range(len(part))) for _, part in rows.groupby("image_id"))


def test_no_photo_and_nothing_found_give_no_rows(tiny_checkpoint: Path) -> None:
    predictor = PhotoPredictor(load_checkpoint(tiny_checkpoint), score_threshold=1.0)
    for rows in (predictor([]), predictor(NOISE[0])):
        assert len(rows) == 0 and list(rows.columns) == INSTANCES_SCHEMA.names


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("nosuch.jpg", r"^nosuch\.jpg: not_found: "),
        (__file__, "unsupported_format: no known image format"),
        (NOISE[0, :, :, 0], r"^0: unsupported_format: uint8 \[64, 96\]; allowed is uint8 or float32 \[H, W, 3\]$"),
        (NOISE[0].astype(np.int64), r"^0: unsupported_format: int64 \[64, 96, 3\]; allowed"),
    ],
)
def test_a_photo_that_cannot_be_used_is_named(predictor: PhotoPredictor, photo: str, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        predictor(photo)


def test_a_bad_photo_among_others_is_a_row_with_its_status(predictor: PhotoPredictor, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(NOISE[0]).save(tmp_path / "good.png")
    results = list(predictor.iter_results([str(tmp_path / "empty.jpg"), str(tmp_path / "good.png")]))
    images, instances = to_frames([result.row for result in results])
    assert list(images.columns) == IMAGES_SCHEMA.names
    assert list(images["status"] == "ok") == [False, True]
    assert results[0].pixels is None
    assert results[1].pixels is not None and np.array_equal(results[1].pixels, NOISE[0])
    assert len(instances) == images["num_instances"].iloc[1] > 0


@pytest.mark.long
def test_the_rows_are_those_of_a_bulk_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    names = ["a.png", "b.png"]
    for name, pixels in zip(names, NOISE):
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    segment(tiny_checkpoint, tmp_path / "photos", tmp_path / "run")
    _, expected = sorted_rows(tmp_path / "run")
    predictor = PhotoPredictor(load_checkpoint(tiny_checkpoint), score_threshold=0.05)
    rows = predictor([tmp_path / "photos" / name for name in names])
    rows["image_id"] = [Path(image_id).name for image_id in rows["image_id"]]
    order = ["image_id", "instance"]
    both = [frame.drop(columns="run_id").sort_values(order).reset_index(drop=True) for frame in (rows, expected)]
    pd.testing.assert_frame_equal(*both, check_exact=True)
