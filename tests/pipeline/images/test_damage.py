"""JPEGs and PNGs that lack something and would be decoded without an error; and no alarm where nothing is missing."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.damage import check_readable, load_whole
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


def scan_of(data: bytes) -> slice:
    """The pixels of a JPEG, those of all its scans, without the end mark."""
    return slice(data.index(b"\xff\xda") + 14, len(data) - 2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_cut_short_and_closed_with_an_end_mark_is_corrupt(kind: str, mode: str) -> None:
    """Wherever it is cut, to the last bytes but three."""
    data = jpeg(photo(mode), **KINDS[kind])
    assert status(data) == status(data, (60, 80)) == "ok"
    for length in np.linspace(scan_of(data).start, len(data) - 6, 40).astype(int):
        closed = data[:length].rstrip(b"\xff") + b"\xff\xd9"
        assert status(closed) == status(closed, (60, 80)) == "corrupt"


@pytest.mark.parametrize("kind", ["restart", "restart rows", "progressive", "progressive, restart"])
def test_what_is_lost_among_the_pixels_is_corrupt(kind: str) -> None:
    """600 bytes that are gone, or zeros; but in the last interval, behind which bytes may be left over.

    Zeros may happen to be just the pixels that are due: 2 of 200 places.
    """
    data = jpeg(photo(), **KINDS[kind])
    starts = np.linspace(scan_of(data).start, len(data) - 2700, 40).astype(int)
    assert {status(data[:start] + data[start + 600 :]) for start in starts} == {"corrupt"}
    zeroed = [status(data[:start] + bytes(600) + data[start + 600 :]) for start in starts]
    assert zeroed.count("corrupt") >= 38


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


def assert_same_as_pillow(data: bytes, draft_size: tuple[int, int] | None = None) -> None:
    with Image.open(io.BytesIO(data)) as picture, Image.open(io.BytesIO(data)) as of_pillow:
        whole = load_whole(picture, data, draft_size)
        if draft_size is not None:
            of_pillow.draft(None, draft_size)
        assert whole.mode == of_pillow.mode and whole.size == of_pillow.size
        assert whole.tobytes() == of_pillow.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str, mode: str) -> None:
    for size in ((320, 240), (1, 1), (17, 9)):
        data = jpeg(photo(mode).resize(size), **KINDS[kind])
        for draft_size in (None, (160, 120), (70, 50), (40, 30), (3, 3)):
            assert_same_as_pillow(data, draft_size)
    assert_same_as_pillow(jpeg(photo(), keep_rgb=True))


def test_no_alarm_and_the_pixels_of_pillow_for_files_of_real_cameras_and_encoders() -> None:
    paths = sorted(path for suffix in ("jpg", "jpeg") for path in SHARED_DATA.rglob(f"*.{suffix}"))
    if not paths:
        pytest.skip("no shared data")
    for path in paths[:: max(1, len(paths) // 150)]:
        data = path.read_bytes()
        if data[:2] == b"\xff\xd8" and "awkward" not in str(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_same_as_pillow(data)


def test_what_is_too_much_leaves_nothing_out() -> None:
    """Bytes before the end mark, behind it, and among the header's segments, where some encoders put them."""
    data = jpeg(photo())
    table = data.index(b"\xff\xdb")
    for odd in (data[:-2] + bytes(9) + data[-2:], data + bytes(9), data[:table] + bytes(9) + data[table:]):
        assert status(odd) == "ok"
        assert_same_as_pillow(odd)


def test_what_pillow_overlooks_is_named() -> None:
    pixels = np.asarray(photo())
    whole, png = jpeg(photo()), encoded(pixels)
    progressive = jpeg(photo(), progressive=True)
    scan = progressive.rindex(b"\xff\xc4")  # the tables of the last scan
    inside = png.index(b"IDAT") + 20
    for data, words in (
        (whole[:-200] + bytes(200), "Premature end of JPEG file"),
        (whole[:-400] + b"\xff\xd9", "premature end of data segment"),
        (progressive[:scan] + b"\xff\xd9", "its last scans are missing"),
        (jpeg(photo(), restart_marker_rows=1).replace(b"\xff\xd3", b"", 1), "extraneous bytes before marker 0xd4"),
        (png[:inside] + bytes([png[inside] ^ 1]) + png[inside + 1 :], "the checksum of the pixels does not match"),
    ):
        with Image.open(io.BytesIO(data)) as picture, pytest.raises(ValueError, match=words):
            load_whole(picture, data)


def test_kinds_of_jpeg_that_are_not_read_are_named() -> None:
    data = jpeg(photo())
    check_readable(data, "JPEG")
    check_readable(b"anything", "PNG")
    frame = data.index(b"\xff\xc0")
    with pytest.raises(Unsupported, match="process 3"):
        check_readable(data[: frame + 1] + b"\xc3" + data[frame + 2 :], "JPEG")
    with pytest.raises(Unsupported, match="12 bits"):
        check_readable(data[: frame + 4] + b"\x0c" + data[frame + 5 :], "JPEG")
