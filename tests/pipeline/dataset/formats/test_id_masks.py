"""Id masks: images whose pixel values number the objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.id_masks import draw_id_map, id_map_to_instances, read_id_map, voc_palette, write_id_map
from pipeline.dataset.types import AnnotatedImage, AnnotationError, mask_to_instance
from pipeline.storage.files import Location


def test_voc_palette_is_the_known_one() -> None:
    colours = np.frombuffer(voc_palette(), dtype=np.uint8).reshape(256, 3)
    assert colours[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [224, 224, 192],
    ]  # fmt: skip


def test_an_id_map_gives_exact_masks_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 9, (6, 7)), np.ones((3, 4), dtype=int))
    instances = id_map_to_instances(ids, {1: 1, 2: 1, 3: 2, 77: 5})
    assert set(instances) == {1, 2, 3}
    for value, instance in instances.items():
        assert np.array_equal(instance.mask(*ids.shape), ids == value)
        rows, columns = np.nonzero(ids == value)
        assert instance.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert instance.area == len(rows)
    assert id_map_to_instances(ids, {}) == {}


@pytest.mark.parametrize(("bits", "highest"), [(8, 255), (16, 65535)])
def test_written_ids_are_read_back(tmp_path: Path, bits: int, highest: int) -> None:
    ids = np.random.default_rng(0).integers(0, highest + 1, (7, 9))
    ids[0, 0] = highest
    write_id_map(Location(str(tmp_path / "ids.png")), ids, bits=bits)
    again = read_id_map(Location(str(tmp_path / "ids.png")))
    assert again.dtype == np.int64 and np.array_equal(again, ids)
    with Image.open(tmp_path / "ids.png") as image:
        assert image.mode == ("P" if bits == 8 else "I;16")


def test_colour_images_and_broken_files_are_no_id_maps(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "colour.png")
    with pytest.raises(AnnotationError, match="not of mode RGB"):
        read_id_map(Location(str(tmp_path / "colour.png")))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(AnnotationError, match=r"broken\.png cannot be read"):
        read_id_map(Location(str(tmp_path / "broken.png")))
    with pytest.raises(AnnotationError, match=r"absent\.png cannot be read"):
        read_id_map(Location(str(tmp_path / "absent.png")))


def test_drawing_refuses_shared_pixels_or_gives_them_to_the_smaller_object() -> None:
    masks = np.zeros((3, 6, 8), dtype=np.uint8)
    masks[0, 1:3, 1:3] = 1
    masks[1, 0:5, 0:5] = 1
    masks[2, 4:6, 6:8] = 1
    image = AnnotatedImage(1, "a.png", Location("a.png"), 6, 8, tuple(mask_to_instance(1, mask) for mask in masks))
    with pytest.raises(AnnotationError, match=r"a\.png: two objects share 4 pixels"):
        draw_id_map(image, [7, 8, 9])
    expected = np.where(masks[1] != 0, 8, 0) + np.where(masks[2] != 0, 9, 0)
    expected[1:3, 1:3] = 7
    assert np.array_equal(draw_id_map(image, [7, 8, 9], overlap="smaller_on_top"), expected)
    assert np.array_equal(draw_id_map(image, [7, 0, 0]), 7 * masks[0].astype(int))  # 0 leaves an instance out
