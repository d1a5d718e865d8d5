"""Where the memory of an actor's process goes: R50-FPN at 800 px on a CPU, photos of 0.7 to 3 megapixels, without Ray.

    python -m benchmarks.bench_memory [--precision float32] [--threads 2]

The process has an actor's malloc, so it needs glibc. It predicts and encodes 12 drawn photos one by one, while a thread
asks the system and malloc every few milliseconds. Figures are MiB, resident in memory: before there is a network, with
one, at the highest, and where malloc had most in use.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.bench_predict import PHOTO_SIZES, draw_pixels, make_checkpoint, make_predictor, segment
from benchmarks.figures import print_figures
from model.spec import ModelSpec
from pipeline import malloc
from pipeline.bulk.encode import warm_up

SAMPLE_S = 0.003


class MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


_mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)


def held() -> dict[str, float]:
    """What is resident now: in all, of files, of malloc in use and free (not all of it resident), and all else."""
    pages, page = Path("/proc/self/statm").read_text().split(), os.sysconf("SC_PAGESIZE")
    resident, files = int(pages[1]) * page, int(pages[2]) * page
    assert _mallinfo is not None, "`main` has seen to that"
    info = _mallinfo()
    in_use, holes = info.uordblks + info.hblkhd, info.fordblks
    parts = {"all": resident, "files": files, "in use": in_use, "holes": holes}
    parts["else"] = resident - files - in_use - holes
    return {name: size / 2**20 for name, size in parts.items()}


@contextmanager
def highest(peaks: dict[str, dict[str, float]]) -> Iterator[None]:
    """Leaves in `peaks` what was held where that was most in all, and where most of it was in use."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            now = held()
            for name in ("all", "in use"):
                peaks[name] = max(peaks.get(name, now), now, key=lambda one: one[name])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if _mallinfo is None:
        parser.error("needs glibc 2.33 or later, whose malloc says what it holds")
    _mallinfo.restype = MallInfo
    if not os.environ.items() >= malloc.ENVIRONMENT.items():
        words = [sys.executable, "-m", "benchmarks.bench_memory", *sys.argv[1:]]
        os.execve(sys.executable, words, os.environ | malloc.ENVIRONMENT)
    random = np.random.default_rng(0)
    images = [draw_pixels(random, *size) for size in PHOTO_SIZES]
    peaks: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), ModelSpec(num_classes=90, norm="batch"))
        warm_up()
        gc.collect()
        malloc.give_back_holes()
        states = {"before there is a network": held()}
        predictor = make_predictor(folder, batch_size=1, precision=options.precision, num_threads=options.threads)
        gc.collect()
        malloc.give_back_holes()
        states["with the network"] = held()
        with highest(peaks):
            for image in images:
                segment(predictor, [image])
    states |= {"at the highest": peaks["all"], "where most is in use": peaks["in use"]}
    print_figures({f"{state}: {part}": size for state, parts in states.items() for part, size in parts.items()})


if __name__ == "__main__":
    main()
