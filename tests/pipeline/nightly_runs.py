"""Nightly runs over a folder that changes, committed as a worker does, without a network: bytes decide on the rows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.bulk.commit import claim_run, commit_shard, seal_run
from pipeline.bulk.corpus import list_corpus, seal_plan
from pipeline.bulk.encode import ImageResult
from pipeline.plan import PlannedImage
from pipeline.run_spec import InputSpec, RunCategory, RunModel, RunSpec, SegmentSpec
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.shards import image_result, write_shard

CATEGORIES = (RunCategory(7, "cat"), RunCategory(8, "dog"))


def result_of(image: PlannedImage, photos: LocalStorage, num_scores: int = 4) -> ImageResult:
    """What a network would find on these bytes: up to three instances; one image in nine fails."""
    number = zlib.crc32(photos.read_bytes(image.image_id) + image.image_id.encode())
    if number % 9 == 0:
        return ImageResult(image, "corrupt" if number % 2 else "timeout", f"made so by {number}")
    scores = tuple(sorted(float(np.float32((number >> bit) % 97 / 97)) for bit in range(number % num_scores))[::-1])
    result = image_result(image, scores, "cat")
    result.instances["category"] = [CATEGORIES[i % 2].name for i in range(len(scores))]
    result.instances["category_id"] = [CATEGORIES[i % 2].id for i in range(len(scores))]
    return result


def segment(
    photos: LocalStorage,
    out: Path,
    since_run: str | None = None,
    *,
    shard_size: int = 5,
    shards: Sequence[int] | None = None,
    num_scores: int = 4,
    categories: tuple[RunCategory, ...] = CATEGORIES,
    model_sha256: str = "0" * 64,
) -> str:
    """Writes a run over the folder and returns its URI. It is sealed, unless it is of some `shards` only."""
    run, source = LocalStorage(out), InputSpec(uri=photos.uri, since_run=since_run)
    spec = RunSpec(
        schema_version=1,
        input=source,
        model=RunModel(sha256=model_sha256, categories=categories),
        segment=SegmentSpec(score_threshold=0.05),
    )
    run_id = claim_run(run, spec.to_json())
    plan = seal_plan(run, partial(list_corpus, source), shard_size=shard_size, num_workers=1)
    for shard in range(plan.num_shards) if shards is None else shards:
        results = [result_of(image, photos, num_scores) for image in plan.read_shard(shard)]
        commit_shard(run, write_shard(run, plan, run_id, shard, "a", results))
    if shards is None:
        seal_run(run, plan, run_id)
    return run.uri


def change_photos(photos: LocalStorage, rng: np.random.Generator, *, new: int, changed: int, deleted: int) -> set[str]:
    """Adds, replaces and deletes photos; returns the names of the deleted."""
    names = [info.key for info in photos.iter_objects()]
    chosen = rng.permutation(names)[: changed + deleted].tolist() if names else []
    for name in chosen[:changed]:
        photos.write_bytes(name, rng.bytes(8 + int(rng.integers(100))))
    for name in chosen[changed:]:
        photos.delete(name)
    for number in rng.integers(10**9, size=new).tolist():
        photos.write_bytes(f"{'abc'[number % 3]}/{number:09d}.jpg", rng.bytes(20))
    return set(chosen[changed:])


def write_chain(
    root: Path,
    num_runs: int,
    *,
    new: int,
    changed: int,
    deleted: int,
    first: int = 40,
    num_scores: int = 4,
    shard_size: int = 5,
) -> tuple[list[str], LocalStorage, set[str]]:
    """Draws a folder that changes every night, and segments it every night.

    Returns the URIs of the runs, oldest first; the photos; and the names that were deleted and did not come back.
    """
    photos, rng, gone, runs = LocalStorage(root / "photos"), np.random.default_rng(1), set[str](), list[str]()
    for night in range(num_runs):
        gone |= change_photos(photos, rng, new=new if night else first, changed=changed, deleted=deleted)
        out = root / "nights" / f"night-{night:02d}"
        runs.append(segment(photos, out, runs[-1] if runs else None, num_scores=num_scores, shard_size=shard_size))
    return runs, photos, gone - {info.key for info in photos.iter_objects()}
