"""The decode child: its protocol, and hostile files: each gets its own status, and none affects the next.

The long form, 5,000 broken files: `pytest -m slow tests/pipeline/images/test_decode_child.py`.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images.decode_child import ANSWER_BYTES, REQUEST
from pipeline.images.decode_pool import STATUSES, Decoded, DecodeLimits, DecodePool
from tests.paths import ROOT, SHARED_DATA
from tests.pipeline.images.image_files import encoded

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=4_000_000, timeout_s=20.0, memory_bytes=512 << 20)
MANIFEST = SHARED_DATA / "awkward_images" / "manifest.json"
ROWS = {row["file"]: row for row in json.loads(MANIFEST.read_text())} if MANIFEST.is_file() else {}
NO_FORMAT_OF_OURS = {
    "files/avif_hopper.heif": "HEIC",
    "files/crash-754d9c7ec485ffb76a90eeaab191ef69a2a3a3cd.sgi": "SGI",
    "files/decompression_bomb.ico": "ICO",
    "files/pillow.ico": "ICO",
    "files/negative_size.ppm": "no white space after P6",
    "files/test-ole-file.doc": "OLE",
    "made/lfs_pointer.jpg": "text",
    "made/s3_error_xml.jpg": "XML",
}


def test_a_child_answers_by_its_protocol_and_ends_with_its_connection() -> None:
    """By hand: requests go over a socket, answers come as padded JSON, pixels as bytes of the shared file."""
    ours, of_child = socket.socketpair()
    ours.settimeout(60)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    with tempfile.TemporaryFile() as block:
        settings = {
            "parent_pid": os.getpid(),
            "socket_fd": of_child.fileno(),
            "block_fd": block.fileno(),
            "limits": {"max_pixels": 1000},
            "decode": "pipeline.images.decode_image:decode_image",
        }
        child = subprocess.Popen(
            [sys.executable, "-c", "from pipeline.images.decode_child import main; main()", json.dumps(settings)],
            cwd=ROOT,
            pass_fds=(of_child.fileno(), block.fileno()),
        )
        of_child.close()

        def answer() -> dict[str, object]:
            return json.loads(ours.recv(ANSWER_BYTES, socket.MSG_WAITALL))

        def ask(data: bytes, num_bands: int) -> dict[str, object]:
            ours.sendall(REQUEST.pack(len(data), 0, 0, num_bands) + data)
            return answer()

        def pixels_at(offset: object, dtype: type) -> np.ndarray:
            block.seek(int(str(offset)))
            return np.frombuffer(block.read(), dtype)

        assert answer() == {"status": "ready"}
        colours = ask(encoded(pixels[..., :3]), 3)
        assert (colours["status"], colours["shape"], colours["dtype"]) == ("ok", [5, 7, 3], "uint8")
        np.testing.assert_array_equal(pixels_at(colours["offset"], np.uint8), pixels[..., :3].ravel())
        bands = ask(encoded(pixels), 0)  # all there are
        assert (bands["status"], bands["shape"], bands["dtype"]) == ("ok", [5, 7, 4], "float32")
        np.testing.assert_allclose(pixels_at(bands["offset"], np.float32), pixels.ravel() / 255, rtol=1e-6)
        assert ask(encoded(np.zeros((50, 50, 3), np.uint8)), 3)["status"] == "too_large"
        assert ask(b"text", 3)["status"] == "unsupported_format"
        ours.close()
        assert child.wait(60) == 0


def expected_status(row: dict) -> str:
    """Our status for the result of Pillow 13 that the manifest states."""
    if row["file"] in NO_FORMAT_OF_OURS:
        return "unsupported_format"
    if row["file"] == "files/hopper_bad_exif.jpg":  # stripes of noise: restart intervals of another picture
        return "corrupt"
    if row["pil"] == "ok" or row["file"] == "files/hopper_webp.tif":  # which tifffile reads
        return "ok"
    return "too_large" if row["pil"].startswith("DecompressionBombError") else "corrupt"


@pytest.fixture(scope="module")
def awkward(shared_data: Path) -> dict[str, Decoded]:
    """The results for all awkward files, from one pool, in the order of the manifest."""
    limits = DecodeLimits(timeout_s=30.0)
    with DecodePool(2, limits) as pool:
        futures = {name: pool.submit((MANIFEST.parent / name).read_bytes()) for name in ROWS}
        return {name: future.result(120) for name, future in futures.items()}


@pytest.mark.parametrize("name", ROWS or ["none"])
def test_awkward_file(name: str, awkward: dict[str, Decoded]) -> None:
    row, decoded = ROWS[name], awkward[name]
    assert decoded.status == expected_status(row), decoded.error
    if decoded.status != "ok":
        assert decoded.image is None and decoded.error
        return
    width, height = row.get("rgb", row["size"])  # after the turn
    assert decoded.image is not None and decoded.image.shape == (height, width, 3)
    assert (decoded.height, decoded.width) == (height, width)
    if row["fmt"] != "TIFF":  # Pillow drops the tag of a TIFF when it has turned it
        assert decoded.exif_orientation == row["orient"]
    with warnings.catch_warnings(), Image.open(MANIFEST.parent / name) as image:
        warnings.simplefilter("ignore")
        plain = row["pil"] == "ok" and image.mode in ("1", "L", "RGB", "CMYK") and not row["transparency"]
        if plain:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            np.testing.assert_array_equal(decoded.image, np.asarray(upright))


def drawn_files() -> list[bytes]:
    """Small good files of every format and most codecs."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    image = Image.fromarray(pixels)
    frames = [image.rotate(20), image.rotate(40)]
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict]] = [
        (image, "JPEG", {"exif": exif, "quality": 90}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {"exif": exif}),
        (image.convert("RGBA"), "PNG", {}),
        (image.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257), "PNG", {}),
        (image, "PNG", {"save_all": True, "append_images": frames}),
        (image, "WEBP", {"exif": exif}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image, "WEBP", {"save_all": True, "append_images": frames}),
        (image, "TIFF", {"exif": exif}),
        (image, "TIFF", {"compression": "tiff_lzw"}),
        (image, "TIFF", {"compression": "jpeg"}),
        (image.convert("1"), "TIFF", {"compression": "group4"}),
        (image, "TIFF", {"save_all": True, "append_images": frames}),
        (image, "BMP", {}),
        (image.quantize(16), "BMP", {}),
        (image.quantize(16), "GIF", {"transparency": 3}),
        (image, "GIF", {"save_all": True, "append_images": frames}),
        (image, "PPM", {}),
        (image, "AVIF", {}),
        (image, "AVIF", {"save_all": True, "append_images": frames}),
        (image, "JPEG2000", {}),
        (image, "JPEG2000", {"no_jp2": True, "quality_layers": [20]}),
        (image, "MPO", {"save_all": True, "append_images": frames}),
    ]
    files = []
    for kind, name, options in kinds:
        file = io.BytesIO()
        kind.save(file, name, **options)
        files.append(file.getvalue())
    return files


def mutate(files: list[bytes], chance: random.Random) -> bytes:
    """A copy of one of the files with bytes flipped, cut, filled, or spliced with another file."""
    data = bytearray(chance.choice(files))
    kind = chance.choice(["flip", "flip", "flip", "header", "cut", "fill", "splice", "repeat"])
    at = chance.randrange(len(data))
    length = chance.choice([1, 2, 4, 16, 200])
    if kind == "flip":
        for _ in range(chance.choice([1, 2, 5, 30])):
            data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    elif kind == "header":  # sizes, counts and offsets stand near the start
        for _ in range(chance.choice([1, 2, 4])):
            data[chance.randrange(min(len(data), 120))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    elif kind == "cut":
        del data[at:]
    elif kind == "fill":
        data[at : at + length] = chance.choice([b"\0", b"\xff"]) * length
    elif kind == "splice":
        other = chance.choice(files)
        data[at:] = other[chance.randrange(len(other)) :]
    else:
        data[at:at] = data[at : at + length] * chance.choice([1, 3, 50])
    return bytes(data)


def check_mutated(files: list[bytes], count: int, seed: int) -> Counter[str]:
    """Checks that each of `count` broken files gets a status, and that good files between them keep their pixels."""
    chance = random.Random(seed)
    good = files[:20:3]
    counts: Counter[str] = Counter()
    with DecodePool(2, LIMITS) as pool:
        wholes = [pool.submit(data).result(60).image for data in good]
        assert all(whole is not None for whole in wholes)
        for _ in range(-(-count // 100)):
            broken = [mutate(files, chance) for _ in range(100)]
            futures = [pool.submit(data) for data in broken]
            among = chance.randrange(len(good))
            between = pool.submit(good[among])
            for data, future in zip(broken, futures):
                decoded = future.result(300)
                counts[decoded.status] += 1
                assert decoded.status in STATUSES
                assert (decoded.image is not None) == (decoded.status == "ok") == (decoded.error is None), data
                if decoded.image is not None:
                    assert decoded.image.shape == (decoded.height, decoded.width, 3)
            neighbour = between.result(60)
            assert neighbour.image is not None and (neighbour.image == wholes[among]).all()
        # The result depends on the file only: the same files again, in another order, in other children.
        again = {data: pool.submit(data) for data in reversed(broken)}
        for data, future in zip(broken, futures):
            second = again[data].result(300)
            assert (second.status, second.error) == (future.result().status, future.result().error)
    assert sum(counts.values()) >= count
    return counts


def test_200_mutated_files() -> None:
    counts = check_mutated(drawn_files(), 200, seed=11)
    assert counts["corrupt"] > 50


@pytest.mark.slow
def test_5000_mutated_files() -> None:
    counts = check_mutated(drawn_files(), 5000, seed=12)
    assert counts["corrupt"] > 1000


@pytest.mark.slow
def test_5000_mutated_awkward_files(shared_data: Path) -> None:
    files = [(MANIFEST.parent / name).read_bytes() for name in ROWS]
    usable = [data for data in files if 0 < len(data) < 100_000]
    good = [(MANIFEST.parent / name).read_bytes() for name, row in ROWS.items() if row["pil"] == "ok"]
    counts = check_mutated([*[data for data in good if len(data) < 20_000], *usable], 5000, seed=13)
    assert counts["corrupt"] > 1000
