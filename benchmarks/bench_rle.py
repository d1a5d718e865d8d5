"""Mask-to-RLE encoding, seconds and extra memory, against torchvision's mask pasting with pycocotools' encoding.

    python -m benchmarks.bench_rle [--runs 5] [--seed 0] [--instances 100]

The peer is `paste_masks_in_image`, `>= 0.5` and `pycocotools.mask.encode`. Prints one JSON line for each measure and a
table at the end. Both sides run in turn in one process, on the same masks and boxes; figures are medians over paired
runs. The peer has all of torch's threads, the encoder one. Boxes have uniform centres and sides of 0.02 + 0.4 u^2 of
the image (u uniform); masks are 28 x 28 smooth blobs with noise of 0.5 on the logit. Memory is the peak resident size
during a call less the resident size before it (Linux only, else null). Takes about four minutes and 10 GB of memory on
two cores, nearly all of it the peer's at 12 megapixels.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.figures import print_figures

FULL_HD = (1080, 1920)
TWELVE_MEGAPIXELS = (3000, 4000)
HUNDRED_MEGAPIXELS = (8660, 11547)  # the aspect ratio of the twelve, as cost follows the columns
SIDE = 28
NUM_HUGE_CHECKED = 5  # masks of the largest image compared with the peer's, one at a time

Image = tuple[np.ndarray, np.ndarray, tuple[int, int]]


def draw_image(rng: np.random.Generator, num: int, size: tuple[int, int]) -> Image:
    """Masks float32 [N, 28, 28], boxes float32 [N, 4] XYXY and (height, width) of one image."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    centre, radius = rng.uniform(-0.3, 0.3, (2, num, 1, 1)), rng.uniform(0.5, 1.0, (2, num, 1, 1))
    logits = 6 * (1 - ((y - centre[0]) / radius[0]) ** 2 - ((x - centre[1]) / radius[1]) ** 2)
    masks = 1 / (1 + np.exp(-logits - rng.normal(0, 0.5, logits.shape)))
    centres, sides = rng.random((num, 2)), 0.02 + 0.4 * rng.random((num, 2)) ** 2
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    boxes = corners * [size[1], size[0], size[1], size[0]]
    return masks.astype(np.float32), boxes.astype(np.float32), size


def encode_by_peer(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[str]:
    """COCO compressed RLE strings of the masks, by torchvision and pycocotools."""
    pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), size)
    inside = (pasted[:, 0] >= 0.5).numpy().astype(np.uint8)
    return [coco.encode(np.asfortranarray(mask))["counts"].decode() for mask in inside]


def measure(function: Callable[..., Any], image: Image) -> tuple[float, float | None, Any]:
    """(seconds, peak extra MiB or None, result) of one call."""
    before = _reset_peak_mib()
    start = time.perf_counter()
    result = function(*image)
    seconds = time.perf_counter() - start
    return seconds, None if before is None else _read_mib("VmHWM") - before, result


def run(num_runs: int = 5, seed: int = 0, num_instances: int = 100) -> list[dict[str, Any]]:
    """Measurements: one dict for each row of the printed table, in its order."""
    start = time.perf_counter()
    from pipeline.masks.rle import encode_roi_masks

    rng = np.random.default_rng(seed)
    encode_roi_masks(*draw_image(rng, 1, (64, 64)))
    rows: list[dict[str, Any]] = [
        {"measure": "first call in a process: import of numba, kernel loaded or compiled", "encoder_s": 0.0}
    ]
    rows[0]["encoder_s"] = time.perf_counter() - start

    for size in (FULL_HD, TWELVE_MEGAPIXELS):
        ours, peers = [], []
        for _ in range(num_runs):
            image = draw_image(rng, num_instances, size)
            ours.append(measure(encode_roi_masks, image))
            peers.append(measure(encode_by_peer, image))
            if ours[-1][2] != peers[-1][2]:
                raise AssertionError(f"the encoder's bytes differ from the peer's at {size}, seed {seed}")
        rows.append(
            {
                "measure": f"{num_instances} instances, {size[0]} x {size[1]}",
                "encoder_s": statistics.median(seconds for seconds, _, _ in ours),
                "peer_s": statistics.median(seconds for seconds, _, _ in peers),
                "ratio": statistics.median(peer[0] / our[0] for our, peer in zip(ours, peers)),
                "encoder_extra_mib": _max_extra_mib(ours),
                "peer_extra_mib": _max_extra_mib(peers),
                "equal_bytes": num_runs * num_instances,
            }
        )

    ours, smaller = [], []
    for _ in range(num_runs):
        huge = draw_image(rng, 10 * num_instances, HUNDRED_MEGAPIXELS)
        smaller.append(measure(encode_roi_masks, draw_image(rng, num_instances, TWELVE_MEGAPIXELS)))
        ours.append(measure(encode_roi_masks, huge))
    masks, boxes, size = huge
    for n in range(NUM_HUGE_CHECKED):
        if encode_by_peer(masks[n : n + 1], boxes[n : n + 1], size) != ours[-1][2][n : n + 1]:
            raise AssertionError(f"the encoder's bytes differ from the peer's at {size}, seed {seed}")
    rows.append(
        {
            "measure": f"{10 * num_instances} instances, {size[0]} x {size[1]}",
            "encoder_s": statistics.median(seconds for seconds, _, _ in ours),
            "times_the_row_before": statistics.median(huge_call[0] / call[0] for huge_call, call in zip(ours, smaller)),
            "encoder_extra_mib": _max_extra_mib(ours),
            "equal_bytes": NUM_HUGE_CHECKED,
        }
    )
    machine = {
        "num_runs": num_runs,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return [{**row, **machine} for row in rows]


def format_table(rows: list[dict[str, Any]]) -> str:
    """The measurements as a Markdown table."""
    columns = {
        "measure": "measure",
        "encoder_s": "encoder",
        "peer_s": "peer",
        "ratio": "faster",
        "times_the_row_before": "vs row before",
        "encoder_extra_mib": "memory",
        "peer_extra_mib": "peer's memory",
        "equal_bytes": "equal masks",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_format_cell(key, row.get(key)) for key in columns) + " |")
    return "\n".join(lines)


def _format_cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key.endswith("_s"):
        return f"{value * 1e3:,.2f} ms"
    if key.endswith("_mib"):
        return f"{value:,.1f} MiB"
    if key in ("ratio", "times_the_row_before"):
        return f"{value:,.1f}x"
    return str(value)


def _max_extra_mib(measured: list[tuple[float, float | None, Any]]) -> float | None:
    memory = [extra_mib for _, extra_mib, _ in measured if extra_mib is not None]
    return max(memory) if memory else None


def _reset_peak_mib() -> float | None:
    """Resets the peak resident size to the resident size and returns that in MiB; None where that is impossible.

    First returns freed memory from the allocator to the system: a call that reuses it would seem to need none.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _read_mib("VmRSS")


def _read_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="paired runs of each measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--instances", type=int, default=100, help="instances in an image; ten times as many in the last measure"
    )
    arguments = parser.parse_args()
    rows = run(arguments.runs, arguments.seed, arguments.instances)
    for row in rows:
        print(json.dumps(row))
    print(format_table(rows))
    print_figures(
        {
            f"{row['measure']}: {name}": value
            for row in rows
            for name, value in row.items()
            if isinstance(value, (int, float))
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
