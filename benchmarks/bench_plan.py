"""Time and peak memory of planning a corpus of millions of keys; its peer is the same plan with fewer keys.

    python -m benchmarks.bench_plan --keys 1000000 10000000

Peak memory must not grow with the number of keys. There are two kinds of corpus: a bucket's listing, which comes in
order and is written as it streams by, and a Parquet list of URIs in random order, which is sorted in runs on the
scratch disk. Each is planned in its own process. No other program is compared: a plain script holds the listing in
memory.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import print_figures
from benchmarks.memory import peak_mib
from pipeline.bulk.corpus import seal_plan
from pipeline.bulk.listing import iter_corpus
from pipeline.plan import PlannedImage
from pipeline.storage.local import LocalStorage


def key_of(number: int) -> str:
    """Key of image `number`, in the style of a bucket of camera images."""
    return f"site-{number // 1_000_000:03d}/camera-{number // 10_000:05d}/IMG_{number:09d}.jpg"


def write_list(path: Path, num_keys: int) -> None:
    """Writes a Parquet list of URIs, in random order within each stretch of a million."""
    rng = random.Random(0)
    schema = pa.schema([("uri", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_keys, 1_000_000):
            stretch = list(range(start, min(start + 1_000_000, num_keys)))
            rng.shuffle(stretch)
            uris = [f"s3://photos/{num_keys - 1 - number:09d}.jpg" for number in stretch]
            writer.write_table(pa.table({"uri": uris}, schema=schema))


def plan(kind: str, num_keys: int, folder: Path) -> None:
    """Plans one corpus and prints seconds and peak memory in MiB."""

    def iter_bucket(after: str) -> Iterator[PlannedImage]:
        for number in range(num_keys):
            key = key_of(number)
            yield PlannedImage(key, f"s3://photos/{key}", f"{number:032x}", 250_000 + number % 1000)

    def iter_list(after: str) -> Iterator[PlannedImage]:
        return iter_corpus(str(folder / "list.parquet"), kind="list", after=after)

    started = time.perf_counter()
    sealed = seal_plan(
        LocalStorage(folder / f"plan-{kind}"),
        iter_bucket if kind == "bucket" else iter_list,
        shard_size=None,
        num_workers=8,
    )
    assert sealed.num_images == num_keys
    print(f"{time.perf_counter() - started:.1f} {peak_mib():.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--one", dest="single_plan", nargs=3, metavar=("KIND", "KEYS", "FOLDER"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.single_plan:
        kind, num_keys, folder = options.single_plan
        return plan(kind, int(num_keys), Path(folder))
    print("| corpus | keys | time | keys/s | peak memory |\n|---|---|---|---|---|")
    figures: dict[str, float] = {}
    for kind in ("bucket", "list"):
        for num_keys in options.keys:
            with tempfile.TemporaryDirectory(prefix="maskfleet-plan-") as folder:
                if kind == "list":
                    write_list(Path(folder) / "list.parquet", num_keys)
                command = [sys.executable, "-m", "benchmarks.bench_plan", "--one", kind, str(num_keys), folder]
                seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            rate = num_keys / float(seconds)
            print(f"| {kind} | {num_keys:,} | {seconds} s | {rate:,.0f} | {peak} MiB |", flush=True)
            figures |= {f"{kind} {num_keys:,} keys/s": rate, f"{kind} {num_keys:,} peak MiB": float(peak)}
    print_figures(figures)


if __name__ == "__main__":
    main()
