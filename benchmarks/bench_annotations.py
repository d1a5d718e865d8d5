"""Reading and checking a COCO file of train2017's size, against pycocotools' `COCO(path)` on the same file.

    python -m benchmarks.bench_annotations [--images 118000] [--annotations 860000] [--runs 3]

The file is drawn: polygons of 4 to 60 points in images of 480 x 640, one annotation in a hundred a crowd with run
lengths. Each run reads it in two new processes, in turn: pycocotools, and `load_coco`, which also checks every entry
and makes the set that training takes. Times are processor time from the call to the result (both run on one thread),
memory is the process's peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import print_figures

HEIGHT, WIDTH = 480, 640
_READERS = {
    "ours": "from pipeline.dataset.formats.coco import load_coco as read",
    "pycocotools": "from pycocotools.coco import COCO as read",
}
_CHILD = """
import contextlib, io, sys, time
from benchmarks.memory import peak_mib
{reader}
started = time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    result = read(sys.argv[1])
print(time.process_time() - started, peak_mib())
"""


def write_file(path: Path, num_images: int, num_annotations: int) -> None:
    """Writes the drawn COCO file, an entry at a time, and the first photo's name beside it."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        file.write('{"images": [')
        for number in range(num_images):
            entry = {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            file.write(("," if number else "") + json.dumps(entry))
        names = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
        file.write(f'], "categories": {json.dumps(names)}, "annotations": [')
        for number in range(num_annotations):
            file.write(("," if number else "") + json.dumps(_annotation(random, number, num_images)))
        file.write("]}")
    (path.parent / f"{0:012d}.jpg").write_bytes(b"")  # its folder is that of the photos


def _annotation(random: np.random.Generator, number: int, num_images: int) -> dict[str, object]:
    width, height = random.uniform(8, 300, 2)
    x, y = random.uniform(0, WIDTH - width), random.uniform(0, HEIGHT - height)
    angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(4, 61)))
    points = np.stack([x + width * (np.cos(angles) + 1) / 2, y + height * (np.sin(angles) + 1) / 2], axis=1)
    segmentation: object = [points.ravel().round(2).tolist()]
    if number % 100 == 0:
        runs = random.integers(1, 400, 500).tolist()
        segmentation = {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - sum(runs)]}
    return {
        "id": number + 1,
        "image_id": int(random.integers(num_images)),
        "category_id": int(random.integers(1, 81)),
        "bbox": [round(float(value), 2) for value in (x, y, width, height)],
        "area": round(float(width * height * 0.7), 4),
        "iscrowd": int(number % 100 == 0),
        "segmentation": segmentation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in _READERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "instances.json")
        write_file(path, options.images, options.annotations)
        file_mib = path.stat().st_size / 2**20
        for _ in range(options.runs):
            for name, reader in _READERS.items():
                command = [sys.executable, "-c", _CHILD.format(reader=reader), str(path)]
                seconds, mib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                measured[name].append((float(seconds), float(mib)))
                print(f"{name}: {float(seconds):.1f} s, {float(mib):,.0f} MiB", flush=True)
    time_ratio, memory_ratio = (
        statistics.median(peer[kind] / own[kind] for peer, own in zip(measured["pycocotools"], measured["ours"]))
        for kind in (0, 1)
    )
    figures = {"file MiB": file_mib, "time_ratio": time_ratio, "memory_ratio": memory_ratio}
    for name, pairs in measured.items():
        figures |= {f"{name}: s": statistics.median(pair[0] for pair in pairs)}
        figures |= {f"{name}: MiB": statistics.median(pair[1] for pair in pairs)}
    print_figures(figures)


if __name__ == "__main__":
    main()
