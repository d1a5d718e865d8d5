"""JPEGs and PNGs that lack something and would be decoded without an error; and no alarm where nothing is missing."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.damage import check_readable, find_damage, is_cut
from pipeline.images.decode_image import DecodeLimits, decode_image
from pipeline.images.pixels import Unsupported
from tests.paths import SHARED_DATA
from tests.pipeline.images.image_files import encoded

LIMITS = DecodeLimits()
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "restart": {"restart_marker_blocks": 7},
    "restart rows": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "progressive, restart": {"progressive": True, "restart_marker_rows": 2},
}


def photo(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    return Image.fromarray(noise).resize((320, 240)).convert(mode)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, **options)
    return file.getvalue()


def status(data: bytes, resize_to: tuple[int, int] | None = None) -> str:
    return decode_image(data, LIMITS, resize_to).status


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_cut_short_and_closed_with_an_end_mark_is_corrupt(kind: str, mode: str) -> None:
    data = jpeg(photo(mode), **KINDS[kind])
    assert status(data) == status(data, (60, 80)) == "ok"
    start = data.index(b"\xff\xda") + 20
    # Of a progressive picture the last scan, which adds the lowest bits, may end early unseen.
    # Otherwise what is cut within the last unit of pixels is not told from a whole picture.
    last = data.rindex(b"\xff\xda") if "progressive" in kind else len(data) - 150
    for length in np.linspace(start, last - 20, 25).astype(int):
        closed = data[:length].rstrip(b"\xff") + b"\xff\xd9"
        assert status(closed) == status(closed, (60, 80)) == "corrupt"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["restart", "restart rows"])
def test_lost_restart_intervals_are_corrupt(kind: str, mode: str) -> None:
    data = jpeg(photo(mode), **KINDS[kind])
    marks = [mark.start() for mark in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    for this, after in zip(marks[::5], marks[1::5]):
        assert status(data[:this] + data[after:]) == "corrupt"  # with its mark
        assert status(data[: this + 2] + data[after:]) == "corrupt"  # its content alone


@pytest.mark.parametrize("kind", KINDS)
def test_grey_pictures_are_whole(kind: str) -> None:
    """Of the very grey that stands for missing pixels: all of it, and a corner of it."""
    for picture in (Image.new("RGB", (100, 75), (128, 128, 128)), photo()):
        picture.paste((128, 128, 128), (picture.width - 20, picture.height - 20, picture.width, picture.height))
        assert status(jpeg(picture, **KINDS[kind])) == "ok"
        assert status(jpeg(picture, **KINDS[kind]), (20, 25)) == "ok"


def test_no_alarm_for_files_of_real_cameras_and_encoders() -> None:
    paths = sorted(path for suffix in ("jpg", "jpeg") for path in SHARED_DATA.rglob(f"*.{suffix}"))
    if not paths:
        pytest.skip("no shared data")
    for path in paths[:: max(1, len(paths) // 150)]:
        data = path.read_bytes()
        if data[:2] != b"\xff\xd8" or "awkward" in str(path):
            continue
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("ignore")
            picture.load()
            assert find_damage(data, "JPEG") is None and not is_cut(data, picture), path


def test_what_pillow_overlooks_is_named() -> None:
    pixels = np.asarray(photo())
    whole, png = jpeg(photo()), encoded(pixels)
    assert find_damage(whole, "JPEG") is None and find_damage(png, "PNG") is None
    assert "end-of-image" in str(find_damage(whole[:-200] + bytes(200), "JPEG"))
    progressive = jpeg(photo(), progressive=True)
    scan = progressive.rindex(b"\xff\xc4")  # the tables of the last scan
    assert "scans are missing" in str(find_damage(progressive[:scan] + b"\xff\xd9", "JPEG"))
    restarts = jpeg(photo(), restart_marker_rows=1)
    assert "restart markers" in str(find_damage(restarts.replace(b"\xff\xd3", b"", 1), "JPEG"))
    inside = png.index(b"IDAT") + 20
    assert "checksum" in str(find_damage(png[:inside] + bytes([png[inside] ^ 1]) + png[inside + 1 :], "PNG"))
    assert find_damage(b"anything", "GIF") is None and find_damage(b"\xff\xd8", "JPEG") is None


def test_kinds_of_jpeg_that_are_not_read_are_named() -> None:
    data = jpeg(photo())
    check_readable(data, "JPEG")
    check_readable(b"anything", "PNG")
    frame = data.index(b"\xff\xc0")
    with pytest.raises(Unsupported, match="process 3"):
        check_readable(data[: frame + 1] + b"\xc3" + data[frame + 2 :], "JPEG")
    with pytest.raises(Unsupported, match="12 bits"):
        check_readable(data[: frame + 4] + b"\x0c" + data[frame + 5 :], "JPEG")
