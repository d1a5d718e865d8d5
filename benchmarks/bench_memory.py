"""Resident memory of an actor's process by use (files, heap in use, heap holes), without Ray; it has no peer.

    python -m benchmarks.bench_memory [--precision float32] [--threads 2]

R50-FPN at 800 px on a CPU. The process has an actor's malloc settings, so it needs glibc. It predicts and encodes 12
synthetic photos of 0.7 to 3 megapixels one by one, while a thread samples the system's and malloc's counters every 3
ms. Figures are MiB of resident memory: before the network is loaded, with the network, at the highest resident size,
and at the most memory in use by malloc.
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


def resident_mib() -> dict[str, float]:
    """Resident MiB now: all of it, mapped files, malloc's in use and free (not all of it resident), and the rest."""
    page_counts, page_bytes = Path("/proc/self/statm").read_text().split(), os.sysconf("SC_PAGESIZE")
    resident, files = int(page_counts[1]) * page_bytes, int(page_counts[2]) * page_bytes
    assert _mallinfo is not None, "`main` checks that glibc has mallinfo2"
    info = _mallinfo()
    in_use, holes = info.uordblks + info.hblkhd, info.fordblks
    parts = {"all": resident, "files": files, "in use": in_use, "holes": holes}
    parts["else"] = resident - files - in_use - holes
    return {name: size / 2**20 for name, size in parts.items()}


@contextmanager
def record_peaks(peaks: dict[str, dict[str, float]]) -> Iterator[None]:
    """Puts into `peaks` the sample with the most resident memory ("all") and that with the most in use ("in use")."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            sample = resident_mib()
            for name in ("all", "in use"):
                peaks[name] = max(peaks.get(name, sample), sample, key=lambda parts: parts[name])

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
        parser.error("needs glibc 2.33 or later, which has mallinfo2")
    _mallinfo.restype = MallInfo
    if not os.environ.items() >= malloc.ENVIRONMENT.items():
        command = [sys.executable, "-m", "benchmarks.bench_memory", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | malloc.ENVIRONMENT)
    random = np.random.default_rng(0)
    images = [draw_pixels(random, *size) for size in PHOTO_SIZES]
    peaks: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), ModelSpec(num_classes=90, norm="batch"))
        warm_up()
        gc.collect()
        malloc.give_back_holes()
        states = {"before there is a network": resident_mib()}
        predictor = make_predictor(folder, batch_size=1, precision=options.precision, num_threads=options.threads)
        gc.collect()
        malloc.give_back_holes()
        states["with the network"] = resident_mib()
        with record_peaks(peaks):
            for image in images:
                segment(predictor, [image])
    states |= {"at the highest": peaks["all"], "where most is in use": peaks["in use"]}
    print_figures({f"{state}: {part}": size for state, parts in states.items() for part, size in parts.items()})


if __name__ == "__main__":
    main()
