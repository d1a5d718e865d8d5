"""A corpus of broken files through the whole run: a row for each, and the whole files between them are not touched."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run
from pipeline.tables import load_images, load_instances
from tests.chaos.runs import segment_here
from tests.pipeline.images.test_decode_hostile import drawn_files, mutate

pytestmark = pytest.mark.usefixtures("ray_cluster")

EVERY = 20  # one whole file for so many broken ones


def write_corpus(folder: Path, files: list[bytes], whole: bytes, num_broken: int, seed: int) -> int:
    """Writes mutated files and, between them, copies of a whole one; returns how many files there are."""
    chance = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for number in range(num_broken):
        (folder / f"{number:05d}-broken").write_bytes(mutate(files, chance))
        if number % EVERY == 0:
            (folder / f"{number:05d}-whole").write_bytes(whole)
    return len(list(folder.iterdir()))


def check_run(out: Path, num_files: int, num_broken: int) -> Counter[str]:
    """A row for each file; every whole one is ok and finds the same things."""
    images, instances = load_images(str(out)), load_instances(str(out))
    assert images["image_id"].is_unique and len(images) == num_files
    assert images["error"].isna().eq(images["status"] == "ok").all()
    whole = images[images["image_id"].str.endswith("-whole")]
    assert len(whole) == -(-num_broken // EVERY) and (whole["status"] == "ok").all()
    assert whole["num_instances"].nunique() == 1 and whole["num_instances"].iloc[0] > 0
    found = instances[instances["image_id"].str.endswith("-whole")]
    assert found.groupby("instance")["score"].agg(lambda scores: scores.max() - scores.min()).max() < 1e-3
    assert list(verify_run(open_run(str(out)))) == []
    return Counter(images["status"])


def test_mutated_files(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "roll-0" / "000.png").read_bytes()
    num_files = write_corpus(tmp_path / "files", drawn_files(), whole, 100, seed=21)
    segment_here(tiny_checkpoint, tmp_path / "files", tmp_path / "run", "corpus.shard_size=32")
    assert check_run(tmp_path / "run", num_files, 100)["corrupt"] > 20


@pytest.mark.slow
def test_every_awkward_file_and_5000_mutated_ones(
    tiny_checkpoint: Path, photos: Path, shared_data: Path, tmp_path: Path
) -> None:
    awkward = [path for path in (shared_data / "awkward_images" / "files").iterdir() if path.is_file()]
    folder = tmp_path / "files"
    folder.mkdir()
    for path in awkward:
        (folder / path.name).write_bytes(path.read_bytes())
    usable = [path.read_bytes() for path in awkward if 0 < path.stat().st_size < 100_000]
    whole = (photos / "roll-0" / "000.png").read_bytes()
    num_files = write_corpus(folder, [*drawn_files(), *usable], whole, 5000, seed=22)
    assert num_files == len(awkward) + 5000 + 250
    segment_here(tiny_checkpoint, folder, tmp_path / "run", "corpus.shard_size=128", "segment.num_workers=[2, 2]")
    counts = check_run(tmp_path / "run", num_files, 5000)
    print(dict(counts))
    assert counts["corrupt"] > 1000
