"""JPEG decoding, images a second: the decode pool of child processes against plain Pillow in one process.

    python -m benchmarks.bench_decode [--children 2] [--images 1000] [--runs 5]

The images are JPEGs of 640 x 480 px. Prints one JSON line a run (the two sides in turn) and a line of medians: images a
second of both sides and their ratio; processor time per image of plain Pillow, of the pool's children and of the pool's
parent (the cost of isolation); and the seconds from the creation of a pool to its first image. Other load on the
machine lowers the rates and changes the processor times less. Takes about 20 s on two free cores.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import time
from collections import deque
from concurrent.futures import Future

import numpy as np
from PIL import Image

from benchmarks.figures import print_figures
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool


def draw_jpegs(count: int) -> list[bytes]:
    """`count` different JPEGs that compress like photos: smooth shapes with noise, quality 90, about 60 kB each."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + random.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def decode_plainly(files: list[bytes], count: int) -> dict[str, float]:
    """Decodes `count` images with Pillow in this process: images a second and processor time per image."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    for i in range(count):
        np.asarray(Image.open(io.BytesIO(files[i % len(files)])).convert("RGB"))
    wall_s = time.perf_counter() - started_s
    return {"plain_per_s": count / wall_s, "plain_cpu_ms": 1e3 * (time.process_time() - cpu_s) / count}


def decode_in_pool(files: list[bytes], count: int, num_children: int) -> dict[str, float]:
    """Decodes `count` images in the pool: images a second, processor time per image, seconds to the first image."""
    children_cpu_s, started_s = _children_cpu_s(), time.perf_counter()
    with DecodePool(num_children, DecodeLimits()) as pool:
        pool.submit(files[0]).result()
        start_s = time.perf_counter() - started_s
        for future in [pool.submit(files[0]) for _ in range(8 * num_children)]:
            future.result()
        started_s, cpu_s, pending = time.perf_counter(), time.process_time(), deque[Future[Decoded]]()
        for i in range(count):
            pending.append(pool.submit(files[i % len(files)]))
            if len(pending) >= 4 * num_children:
                assert pending.popleft().result().status == "ok"
        for future in pending:
            assert future.result().status == "ok"
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return {
        "pool_per_s": count / wall_s,
        "parent_cpu_ms": 1e3 * cpu_s / count,
        "children_cpu_ms": 1e3 * (_children_cpu_s() - children_cpu_s) / count,  # the start of the children included
        "first_image_s": start_s,
    }


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="The decode pool against plain Pillow.")
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    files = draw_jpegs(20)
    runs = []
    for _ in range(options.runs):
        run = decode_plainly(files, options.images) | decode_in_pool(files, options.images, options.children)
        run["ratio"] = run["pool_per_s"] / run["plain_per_s"]
        runs.append(run)
        print(json.dumps({name: round(value, 3) for name, value in run.items()}), flush=True)
    print_figures({name: statistics.median(run[name] for run in runs) for name in runs[0]})


if __name__ == "__main__":
    main()
