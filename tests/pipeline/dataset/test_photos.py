"""Photos of a data set: training reads the same pixels as segmentation, of any mode, bit depth and number of bands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.photos import EXIF_KEPT, EXIF_TURNED, UnusablePhoto, load_photo, read_header
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_image import DecodeLimits, decode_image
from pipeline.storage.files import Location
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes


def annotated(path: Path, height: int = 11, width: int = 14) -> AnnotatedImage:
    return AnnotatedImage(1, path.name, Location(str(path)), height, width)


def pixels_of(path: Path, height: int | None, width: int | None) -> np.ndarray:
    assert height is not None and width is not None
    return load_photo(annotated(path, height, width))[0]


@pytest.fixture(params=["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16", "F", "P clear", "keyed"])
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each Pillow mode, with transparency in some, whose pixels use the whole range of values."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (13, 17, 4), dtype=np.uint8))
    mode, ending = request.param, "png"
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (13, 17)).astype(np.uint16))
    elif mode == "keyed":
        image = Image.fromarray(rng.integers(0, 3, (13, 17)).astype(np.uint16) * 20000)
        options = {"transparency": 20000}
    elif mode == "F":
        image, ending = Image.fromarray(rng.normal(0, 100, (13, 17)).astype(np.float32)), "tif"
    elif mode == "P clear":
        image, options = rgba.convert("RGB").convert("P"), {"transparency": 7}
    else:
        image = rgba.convert("RGB").convert(mode) if mode in ("P", "1", "CMYK") else rgba.convert(mode)
        ending = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"x.{ending}"
    image.save(path, **options)
    return path


def test_every_mode_becomes_the_same_rgb(picture: Path) -> None:
    outcome = decode_image(picture.read_bytes(), DecodeLimits())
    assert outcome.status == "ok"
    assert np.array_equal(pixels_of(picture, 13, 17), np.asarray(outcome.picture))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_every_exif_orientation_is_applied_alike(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path, exif=exif)
    outcome = decode_image(path.read_bytes(), DecodeLimits())
    assert read_header(Location(str(path))).turned_size == (outcome.height, outcome.width)
    assert np.array_equal(pixels_of(path, outcome.height, outcome.width), np.asarray(outcome.picture))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on what it skips
def test_awkward_files_are_read_alike_or_refused_with_a_reason(shared_data: Path) -> None:
    alike = refused = 0
    for path in sorted((shared_data / "awkward_images/files").iterdir()):
        if not path.is_file() or path.stat().st_size > 2**20:
            continue
        data = path.read_bytes()
        outcome = decode_image(data, DecodeLimits())
        try:
            header = read_header(Location(str(path)))
            height, width = header.turned_size
            if outcome.status == "ok":
                assert (height, width) == (outcome.height, outcome.width), path.name
                assert np.array_equal(pixels_of(path, height, width), np.asarray(outcome.picture)), path.name
                alike += 1
            else:
                pixels_of(path, height, width)
        except UnusablePhoto as error:
            assert outcome.status != "ok" and str(error), path.name
            refused += 1
    assert alike > 40 and refused > 5


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue()[:60])  # decoding would find the end missing
    with pytest.raises(UnusablePhoto, match="9000 x 9000"):
        pixels_of(tmp_path / "bomb.png", 100, 100)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_photo_annotated_unturned_is_used_as_stored(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path, exif=exif)
    loaded, exif_use = load_photo(annotated(path, 13, 17))
    assert exif_use == EXIF_KEPT and np.array_equal(loaded, pixels)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of each Pillow plugin that refuses the file
def test_a_tiff_of_five_bands_becomes_five_channels(tmp_path: Path) -> None:
    for dtype, scale in (("u1", 255), ("u2", 65535), ("f4", 1)):
        bands = random_bands(dtype)
        path = tmp_path / f"{dtype}.tif"
        path.write_bytes(tiff_bytes(bands, deflate=True))
        pixels, _ = load_photo(annotated(path), in_channels=5)
        assert pixels.dtype == np.float32 and pixels.shape == (11, 14, 5)
        assert np.allclose(pixels, bands / scale, atol=1e-7)
    with pytest.raises(UnusablePhoto, match="it has 5 bands; 4 are wanted"):
        load_photo(annotated(path), in_channels=4)
    with pytest.raises(UnusablePhoto, match="unreadable"):  # five bands are not read as RGB
        load_photo(annotated(path), in_channels=3)
    with pytest.raises(UnusablePhoto, match=r"11 x 14 px \(H x W\), but annotated as 14 x 11"):
        load_photo(annotated(path, 14, 11), in_channels=5)
    path.write_bytes(tiff_bytes(random_bands("u1"), compression=99))
    with pytest.raises(UnusablePhoto, match="compression 99"):
        load_photo(annotated(path), in_channels=5)


def test_the_header_of_many_bands_is_read_where_annotations_state_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_bytes(random_bands("u2"), orientation=8))
    header = read_header(Location(str(tmp_path / "a.tif")))
    assert (header.height, header.width, header.turned_size) == (11, 14, (14, 11))
    turned, exif_of_turned = load_photo(annotated(tmp_path / "a.tif", 14, 11), in_channels=5)
    stored, exif_of_stored = load_photo(annotated(tmp_path / "a.tif", 11, 14), in_channels=5)
    assert (exif_of_turned, exif_of_stored) == (EXIF_TURNED, EXIF_KEPT)
    assert np.array_equal(turned, np.rot90(stored, 1))


def test_grey_rgba_and_sixteen_bits_give_the_channels_wanted(tmp_path: Path) -> None:
    rgba = random_bands("u1", 4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    grey = random_bands("u1", 1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    deep = (random_bands("u2", 1)[..., 0] * 300).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.allclose(load_photo(annotated(tmp_path / "rgba.png"), in_channels=4)[0], rgba / 255)
    assert np.allclose(load_photo(annotated(tmp_path / "grey.png"), in_channels=1)[0][..., 0], grey / 255)
    assert np.array_equal(load_photo(annotated(tmp_path / "grey.png"))[0], np.repeat(grey[..., None], 3, axis=2))
    assert np.allclose(load_photo(annotated(tmp_path / "deep.png"), in_channels=1)[0][..., 0], deep / 65535)
    assert np.array_equal(load_photo(annotated(tmp_path / "deep.png"))[0][..., 1], deep >> 8)
    grey_of_rgba = load_photo(annotated(tmp_path / "rgba.png"), in_channels=1)[0]
    assert grey_of_rgba.shape == (11, 14, 1) and grey_of_rgba.max() <= 1
