"""The decode pool: a child that crashes, hangs or uses up memory costs one image and leaves nothing behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.images import decode_pool
from pipeline.images.decode_image import Outcome
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from tests.paths import ROOT
from tests.pipeline.images.decode_faults import obey

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)


def children() -> list[psutil.Process]:
    """The decode children of this process, zombies included."""
    return [child for child in psutil.Process().children() if _is_decode_child(child)]


def _is_decode_child(process: psutil.Process) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return True
    return any("pipeline.images.decode_child" in word for word in process.cmdline())


def check_grey(decoded: Decoded, level: int) -> None:
    assert (decoded.status, decoded.error) == ("ok", None)
    assert decoded.image is not None and decoded.image.shape == (30, 40, 3) and decoded.image.dtype == np.uint8
    assert (decoded.image == level).all()


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        ("segfault", "decoder_crashed", "SIGSEGV"),
        ("abort", "decoder_crashed", "SIGABRT"),
        ("exit", "decoder_crashed", "exit code 3"),
        ("killed by another", "decoder_crashed", "SIGKILL"),
        ("raise", "decoder_crashed", "a fault of the decode function itself"),
        ("senseless status", "decoder_crashed", "without sense"),
        ("eat memory", "too_large", str(LIMITS.memory_bytes)),
    ],
)
def test_a_fault_costs_its_image_and_no_neighbour(order: str, status: str, words: str) -> None:
    with DecodePool(2, LIMITS, decode=obey) as pool:
        futures = [pool.submit(b"grey 1"), pool.submit(order.encode()), pool.submit(b"grey 2"), pool.submit(b"grey 3")]
        first, fault, second, third = [future.result(60) for future in futures]
    assert fault.status == status and words in str(fault.error) and fault.image is None
    for decoded, level in ((first, 1), (second, 2), (third, 3)):
        check_grey(decoded, level)


@pytest.mark.parametrize("order", ["sleep", "spin"])
def test_a_hang_ends_in_time_and_costs_its_image(order: str) -> None:
    limits = DecodeLimits(timeout_s=0.3)
    started_s = time.monotonic()
    with DecodePool(1, limits, decode=obey) as pool:
        futures = [pool.submit(b"grey 1"), pool.submit(order.encode()), pool.submit(b"grey 2")]
        first, hang, second = [future.result(60) for future in futures]
    assert hang.status == "timeout" and "0.3 s" in str(hang.error)
    check_grey(first, 1)
    check_grey(second, 2)
    assert time.monotonic() - started_s < 20


def test_the_same_child_goes_on_after_bad_data() -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        pids = {pool.submit(order).result(60).error for order in [b"pid", b"pid"]}
        assert [pool.submit(data).result(60).status for data in (b"", b"text", b"\xff\xd8")] == [
            "corrupt",
            "unsupported_format",
            "corrupt",
        ]
        assert {pool.submit(b"pid").result(60).error} == pids


def test_a_file_that_spoils_its_child_does_not_spoil_the_next_file() -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        futures = [pool.submit(order) for order in (b"grey 1", b"spoil", b"grey 2", b"grey 3")]
        results = [future.result(60) for future in futures]
    check_grey(results[2], 2)
    check_grey(results[3], 3)


def test_memory_that_leaks_is_not_charged_to_a_later_file() -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        statuses = [pool.submit(b"leak").result(60).status for _ in range(6)]
    assert statuses == ["unsupported_format"] * 6


def test_a_child_killed_while_idle_costs_nothing() -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        for level in (1, 2):
            check_grey(pool.submit(b"grey %d" % level).result(60), level)
            (child,) = children()
            child.kill()
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)


def test_children_start_clean_and_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        assert pool.submit(b"modules").result(60).error == ""
        assert pool.submit(b"print").result(60).status == "unsupported_format"
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_does_not_end_a_child() -> None:
    with DecodePool(1, LIMITS, decode=obey) as pool:
        pid = pool.submit(b"pid").result(60).error
        os.kill(int(str(pid)), signal.SIGINT)
        assert pool.submit(b"pid").result(60).error == pid


def test_nothing_stays_behind() -> None:
    shared_memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(2):
        with DecodePool(2, LIMITS, decode=obey) as pool:
            kept = [pool.submit(order) for order in (b"grey 1", b"segfault", b"grey 2", b"eat memory", b"grey 3")]
            images = [future.result(60).image for future in kept]
    assert sum(image is not None for image in images) == 3
    assert children() == []
    # Fewer where what an earlier test had left open was closed in the meantime.
    assert len(os.listdir("/proc/self/fd")) <= descriptors and threading.active_count() <= threads
    assert set(os.listdir("/dev/shm")) <= shared_memory if os.path.isdir("/dev/shm") else True


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time; from tests.pipeline.images.decode_faults import sleep_always\n"
        "from pipeline.images.decode_pool import DecodeLimits, DecodePool\n"
        "pool = DecodePool(2, DecodeLimits(), decode=sleep_always)\n"
        "futures = [pool.submit(sys.argv[1].encode()) for _ in range(2)]; time.sleep(600)\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
    try:
        deadline_s = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        pids = [int(path.name) for path in tmp_path.iterdir()]
        assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
    deadline_s = time.monotonic() + 10
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not any(_is_alive(pid) for pid in pids)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # a zombie waits for init to notice
    except psutil.NoSuchProcess:
        return False


def test_close_cancels_what_is_not_done() -> None:
    pool = DecodePool(1, LIMITS, decode=obey)
    check_grey(pool.submit(b"grey 1").result(60), 1)
    running, queued = pool.submit(b"sleep"), pool.submit(b"grey 2")
    while not running.running():
        time.sleep(0.01)
    pool.close()
    pool.close()
    for future in (running, queued):
        with pytest.raises(CancelledError):
            future.result(5)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(b"grey 3")
    assert children() == []


def test_many_threads_get_their_own_pixels() -> None:
    wrong: list[int] = []

    def work(pool: DecodePool, base: int) -> None:
        for level in range(base, base + 30):
            decoded = pool.submit(b"grey %d" % level).result(60)
            if decoded.image is None or (decoded.image != level).any():
                wrong.append(level)

    with DecodePool(2, LIMITS, decode=obey) as pool:
        threads = [threading.Thread(target=work, args=(pool, 50 * i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_pixels_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "_KEPT_BLOCK_BYTES", 1000)  # the block shrinks after each image
    with DecodePool(1, LIMITS, decode=obey) as pool:
        first = pool.submit(b"grey 7").result(60)
        second = pool.submit(b"grey 8").result(60)
    check_grey(first, 7)
    check_grey(second, 8)
    assert second.image is not None
    second.image[0, 0] = 1  # writable


def test_max_bytes_is_checked_before_a_child_sees_the_file() -> None:
    limits = DecodeLimits(max_bytes=5)
    with DecodePool(1, limits, decode=obey) as pool:
        assert pool.submit(b"abort!").result(60).status == "too_large"
        assert pool.submit(b"abort").result(60).status == "decoder_crashed"


@pytest.mark.parametrize(
    ("resize_to", "shape"),
    [((150, 1000), (320, 160)), ((161, 1000), (640, 320)), ((300, 160), (160, 80)), ((40, 5000), (80, 40))],
)
def test_a_jpeg_comes_back_at_the_size_that_is_just_enough(resize_to: tuple[int, int], shape: tuple[int, int]) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 320), (10, 200, 30)).save(file, "JPEG", exif=exif)
    with DecodePool(1, LIMITS) as pool:
        whole = pool.submit(file.getvalue()).result(60)
        small = pool.submit(file.getvalue(), resize_to=resize_to).result(60)
    assert whole.image is not None and whole.image.shape == (640, 320, 3)
    assert small.image is not None and small.image.shape == (*shape, 3)
    assert (small.height, small.width, small.exif_orientation) == (640, 320, 6)
    np.testing.assert_allclose(small.image, np.broadcast_to(whole.image[0, 0], small.image.shape), atol=2)


def test_a_child_that_cannot_start_is_an_error_and_no_status() -> None:
    def not_importable(
        data: bytes, limits: DecodeLimits, resize_to: tuple[int, int] | None = None, num_bands: int | None = 3
    ) -> Outcome:
        raise AssertionError("a function inside a function has no name that a child could import, so none calls it")

    with DecodePool(1, LIMITS, decode=not_importable) as pool:
        with pytest.raises(decode_pool.DecodeChildError, match="did not start"):
            pool.submit(b"grey 1").result(60)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"timeout_s": -1.0}, "timeout_s is -1.0"),
        ({"formats": ("JPEG", "PSD")}, "PSD"),
        ({"formats": ()}, "at least 1 long"),
    ],
)
def test_limits_out_of_range_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DecodeLimits(**change)


def test_a_pool_needs_children() -> None:
    with pytest.raises(ValueError, match="num_children is 0"):
        DecodePool(0, LIMITS)
