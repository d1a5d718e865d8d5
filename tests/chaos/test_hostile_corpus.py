"""Runs over broken files: each has a row, and the valid files between them are segmented as if alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run
from pipeline.tables import load_images, load_instances
from tests.chaos.runs import segment_here
from tests.pipeline.images.test_decode_child import drawn_files, mutate

pytestmark = pytest.mark.usefixtures("ray_cluster")

EVERY = 20  # broken files for each valid one


def write_corpus(folder: Path, files: list[bytes], valid: bytes, num_broken: int, seed: int) -> int:
    """Writes mutations of `files` and, between them, copies of a valid file; returns the number of files."""
    chance = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for number in range(num_broken):
        (folder / f"{number:05d}-broken").write_bytes(mutate(files, chance))
        if number % EVERY == 0:
            (folder / f"{number:05d}-valid").write_bytes(valid)
    return len(list(folder.iterdir()))


def check_run(out: Path, num_files: int, num_broken: int) -> Counter[str]:
    """Checks that each file has a row and each valid file the same instances; returns the images by status."""
    images, instances = load_images(str(out)), load_instances(str(out))
    assert images["image_id"].is_unique and len(images) == num_files
    assert images["error"].isna().eq(images["status"] == "ok").all()
    valid = images[images["image_id"].str.endswith("-valid")]
    assert len(valid) == -(-num_broken // EVERY) and (valid["status"] == "ok").all()
    assert valid["num_instances"].nunique() == 1 and valid["num_instances"].iloc[0] > 0
    instances_of_valid = instances[instances["image_id"].str.endswith("-valid")]
    spread = instances_of_valid.groupby("instance")["score"].agg(lambda scores: scores.max() - scores.min()).max()
    assert spread < 1e-3
    assert list(verify_run(open_run(str(out)))) == []
    return Counter(images["status"])


@pytest.mark.long
def test_mutated_files_cost_one_row_each(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    valid = (photos / "roll-0" / "000.png").read_bytes()
    num_files = write_corpus(tmp_path / "files", drawn_files(), valid, 100, seed=21)
    segment_here(tiny_checkpoint, tmp_path / "files", tmp_path / "run", "corpus.shard_size=32")
    assert check_run(tmp_path / "run", num_files, 100)["corrupt"] > 20


@pytest.mark.slow
def test_every_awkward_file_and_5000_mutated_ones_cost_one_row_each(
    tiny_checkpoint: Path, photos: Path, shared_data: Path, tmp_path: Path
) -> None:
    awkward = [path for path in (shared_data / "awkward_images" / "files").iterdir() if path.is_file()]
    folder = tmp_path / "files"
    folder.mkdir()
    for path in awkward:
        (folder / path.name).write_bytes(path.read_bytes())
    usable = [path.read_bytes() for path in awkward if 0 < path.stat().st_size < 100_000]
    valid = (photos / "roll-0" / "000.png").read_bytes()
    num_files = write_corpus(folder, [*drawn_files(), *usable], valid, 5000, seed=22)
    assert num_files == len(awkward) + 5000 + 250
    segment_here(tiny_checkpoint, folder, tmp_path / "run", "corpus.shard_size=128", "segment.num_workers=[2, 2]")
    counts = check_run(tmp_path / "run", num_files, 5000)
    print(dict(counts))
    assert counts["corrupt"] > 1000
