"""Filtering ten million instances by class and score into pandas, against reading the whole table and COCO JSON.

    python -m benchmarks.bench_query [--folder F] [--instances 10000000] [--json-instances 1000000]

Compares, each in its own process: the filter pushed down to row groups (`load_instances`); the same through
`pandas.read_parquet`; reading the whole table and filtering in pandas; and, for a table of a million rows, the filter
against the same rows as COCO results JSON filtered in Python. Bytes are those that the process read (`rchar` of
/proc/self/io, Linux). The time is that of the query, without Python's start and imports. The files are in the page
cache; when they are read from a bucket, the number of bytes decides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figures
from benchmarks.memory import peak_mib

CATEGORY, SCORE = "class_07", 0.8
SIDES = ("filter", "pandas, filter", "whole table", "filter, JSON's share", "JSON")
DICTIONARY_COLUMNS = ["category", "run_id", "image_id", "status"]
_ROWS_A_SHARD = 25_600


def draw_tables(folder: Path, num_instances: int, num_json: int, row_group: int) -> None:
    """Writes `run/` of `num_instances`, `small/` of `num_json` and `results.json` of the latter, unless they exist."""
    import numpy as np
    import pyarrow as pa

    from benchmarks.drawn_predictions import draw, write_list, write_run
    from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
    from pipeline.tables import load_instances, load_table

    if (folder / "results.json").exists():
        return
    draw(folder / "pool", num_images=300, num_objects=2160, detections=100, seed=1)
    pool = load_table("instances", str(folder / "pool/run")).combine_chunks()
    rng = np.random.default_rng(0)

    def shards(num_rows: int) -> Iterator[tuple[pa.Table, pa.Table]]:
        for shard, first in enumerate(range(0, num_rows, _ROWS_A_SHARD)):
            size = min(_ROWS_A_SHARD, num_rows - first)
            table = pool.take(pa.array(rng.integers(0, pool.num_rows, size)))
            ids = [f"{shard * 256 + i // 100:012d}.jpg" for i in range(size)]
            table = table.set_column(0, INSTANCES_SCHEMA.field("image_id"), pa.array(ids))
            yield IMAGES_SCHEMA.empty_table(), table.sort_by([("category", "ascending"), ("score", "descending")])

    options = {"row_group_size": row_group, "write_page_index": True, "use_dictionary": DICTIONARY_COLUMNS}
    for run_name, num_rows in (("small", num_json), ("run", num_instances)):
        write_run(folder / run_name, shards(num_rows), **options)
    write_list(
        folder / "results.json",
        (
            {
                "image_id": int(row.image_id[:12]),
                "category_id": row.category_id,
                "score": float(row.score),
                "bbox": [row.x1, row.y1, row.x2 - row.x1, row.y2 - row.y1],
                "segmentation": {"size": [row.image_height, row.image_width], "counts": row.rle_counts},
            }
            for row in load_instances(str(folder / "small")).itertuples()
        ),
    )


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Seconds, MB read, peak MiB and number of matching rows of one side, measured in this process."""
    import pandas as pd

    from pipeline.tables import load_instances

    load_instances(str(folder / "pool/run"), ["score"], [("score", ">", 2)])  # imports on the first call
    conditions = [("category", "==", CATEGORY), ("score", ">", SCORE)]
    started, bytes_before = time.perf_counter(), _bytes_read()
    if side == "filter":
        rows = len(load_instances(str(folder / "run"), filters=conditions))
    elif side == "pandas, filter":
        rows = len(pd.read_parquet(folder / "run/instances", filters=conditions))
    elif side == "whole table":
        frame = load_instances(str(folder / "run"))
        rows = len(frame[(frame["category"] == CATEGORY) & (frame["score"] > SCORE)])
    elif side == "filter, JSON's share":
        rows = len(load_instances(str(folder / "small"), filters=conditions))
    else:
        with open(folder / "results.json", "rb") as file:
            entries = json.load(file)
        category_id = int(CATEGORY[-2:]) + 1
        rows = len(pd.DataFrame([row for row in entries if row["category_id"] == category_id and row["score"] > SCORE]))
    return {
        "seconds": time.perf_counter() - started,
        "read_mb": (_bytes_read() - bytes_before) / 1e6,
        "peak_mib": peak_mib(),
        "rows": rows,
    }


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "maskfleet_bench_query")
    parser.add_argument("--instances", type=int, default=10_000_000)
    parser.add_argument("--json-instances", type=int, default=1_000_000)
    parser.add_argument("--row-group", type=int, default=2048, help="rows; the bulk run writes 2048")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    draw_tables(arguments.folder, arguments.instances, arguments.json_instances, arguments.row_group)
    figures: dict[str, float] = {}
    for side in SIDES:
        runs = []
        for _ in range(1 if side in ("whole table", "JSON") else arguments.runs):
            command = [sys.executable, "-m", "benchmarks.bench_query", "--side", side]
            completed = subprocess.run(
                [*command, "--folder", str(arguments.folder)], check=True, capture_output=True, text=True
            )
            runs.append(json.loads(completed.stdout))
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{side:22} {median['seconds']:7.2f} s {median['read_mb']:8.1f} MB read {median['peak_mib']:7.0f} MiB peak "
            f"{median['rows']:8.0f} rows",
            flush=True,
        )
        figures |= {f"{side} {key}": value for key, value in median.items()}
    size = sum(path.stat().st_size for path in (arguments.folder / "run/instances").rglob("*.parquet"))
    print(
        f"{arguments.instances:,} instances in {size / 1e6:,.0f} MB of Parquet; JSON of {arguments.json_instances:,}: "
        f"{(arguments.folder / 'results.json').stat().st_size / 1e6:,.0f} MB"
    )
    print_figures(figures)


if __name__ == "__main__":
    main()
