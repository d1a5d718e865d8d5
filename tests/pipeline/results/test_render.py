"""Overlays: masks, boxes and labels are drawn where the run found them; photos open as the run saw them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.results.render import color_of, contact_sheet, open_photo, overlay, palette, save_overlays
from tests.pipeline.made_run import image_row, write_run


def test_masks_are_tinted_and_the_rest_is_left_alone(drawn_run, frames):
    instances, images = frames
    row = images.iloc[0]
    photo = np.array(Image.open(row["uri"]))
    rows = instances[instances["image_id"] == row["image_id"]]
    drawn = np.array(overlay(photo, rows, boxes=False, labels=False))
    union = np.zeros(photo.shape[:2], bool)
    for rank in rows["instance"]:
        union |= drawn_run.masks[row["image_id"], rank].astype(bool)
    assert (drawn[~union] == photo[~union]).all()
    assert (drawn[union] != photo[union]).any(axis=1).mean() > 0.95
    assert (np.array(overlay(photo, rows.iloc[:0])) == photo).all()
    assert (np.array(overlay(photo, rows, min_score=1.1)) == photo).all()


def test_a_box_is_drawn_on_its_own_edge_pixels(frames):
    instances, _images = frames
    row = instances.iloc[0]
    photo = np.zeros((row["image_height"], row["image_width"], 3), np.uint8)
    drawn = np.array(overlay(photo, instances.iloc[[0]], masks=False, labels=False)).any(axis=2)
    ys, xs = np.nonzero(drawn)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == tuple(row[["x1", "y1", "x2", "y2"]])


def test_labels_stay_inside_the_picture(frames):
    instances, _ = frames
    row = instances.iloc[[0]].assign(x1=100.0, y1=0.0, x2=120.0, y2=20.0)
    height, width = int(row["image_height"].iloc[0]), int(row["image_width"].iloc[0])
    drawn = np.array(overlay(np.zeros((height, width, 3), np.uint8), row, masks=False, boxes=False))
    patch = (drawn == color_of(row["category"].iloc[0])).all(axis=2)
    assert patch.sum() > 300  # a whole label, not the part of it that happens to fit


def test_a_photo_of_another_size_is_refused(frames):
    with pytest.raises(ValueError, match=r"10 x 10.*found on"):
        overlay(np.zeros((10, 10, 3), np.uint8), frames[0].iloc[[0]])


def test_colors_belong_to_names_and_differ():
    names = ["person", "car", "circle", "square", "triangle", "balloon"]
    assert len({color_of(name) for name in names}) == len(names)
    assert color_of("person") == (6, 249, 53)  # in every process and every report


def test_a_palette_keeps_few_classes_far_apart():
    colors = palette(["triangle", "circle", "square", "person"])
    assert colors == palette({"person", "square", "circle", "triangle"})
    values = [np.array(color, int) for color in colors.values()]
    assert min(np.abs(a - b).sum() for n, a in enumerate(values) for b in values[:n]) > 120
    assert len(set(palette(map(str, range(80))).values())) == 80


def test_contact_sheet_holds_every_picture():
    pictures = [Image.new("RGB", (60, 30), (250, index * 10, 0)) for index in range(7)]
    sheet = np.array(contact_sheet(pictures, titles=[f"{i}.png" for i in range(7)], columns=3, tile_px=64))
    for index in range(7):
        assert (sheet == (250, index * 10, 0)).all(axis=2).sum() > 1000
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_save_overlays_draws_the_run_the_same_each_time(drawn_run, tmp_path):
    first = save_overlays(drawn_run.uri, tmp_path / "a", num_images=5)
    again = save_overlays(drawn_run.uri, tmp_path / "b", num_images=5)
    assert first[0].name == "contact_sheet.png" and len(first) == 6
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


def test_save_overlays_leaves_out_photos_that_are_gone(tmp_path):
    run = write_run(tmp_path / "run", [([image_row("x.png", str(tmp_path / "x.png"), "ok", (9, 9), 0, 0)], [])])
    assert save_overlays(str(run), tmp_path / "out") == []


def test_photos_open_turned_and_as_rgb(tmp_path):
    photo = Image.new("RGB", (40, 20), (200, 0, 0))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert open_photo(str(tmp_path / "turned.jpg")).size == (20, 40)
    Image.fromarray(np.linspace(0, 60_000, 100).astype(np.uint16).reshape(10, 10)).save(tmp_path / "grey16.png")
    assert np.array(open_photo(str(tmp_path / "grey16.png"))).max() == 60_000 >> 8  # as the network sees it
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_photo(str(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)
    photo.save(tmp_path / "turned.tif", tiffinfo={0x0112: 6})
    assert open_photo(str(tmp_path / "turned.tif")).size == (20, 40)
