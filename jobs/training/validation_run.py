"""Predictions of a validation as a bulk run, so that all that reads runs reads them: report, evaluate, pandas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from model.categories import Category
from model.spec import ModelSpec
from pipeline.bulk.commit import claim_run, commit_shard, seal_run, write_table
from pipeline.bulk.corpus import seal_plan
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.manifest import Commit
from pipeline.run_spec import InputSpec, RunCategory, RunModel, RunSpec, SegmentSpec
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.base import Storage

MASK_THRESHOLD = 0.5  # probability from which a pixel belongs to a mask
_ATTEMPT = "validation"  # one process writes the run, so that one name of its files is enough


def validation_spec(uri: str, sha256: str, spec: ModelSpec, categories: Sequence[Category]) -> RunSpec:
    """The specification of the run of a validation.

    Args:
        uri: The validation set.
        sha256: Hash of the network's weights.
        spec: The network's spec, whose thresholds hold.
        categories: The class map.
    """
    return RunSpec(
        schema_version=SCHEMA_VERSION,
        input=InputSpec(uri=uri),
        model=RunModel(
            sha256=sha256,
            spec=spec.to_dict(),
            categories=tuple(RunCategory(category.id, category.name) for category in categories),
        ),
        segment=SegmentSpec(
            score_threshold=spec.score_threshold, max_detections=spec.max_detections, mask_threshold=MASK_THRESHOLD
        ),
    )


def write_run(storage: Storage, spec: RunSpec, results: Sequence[ImageResult]) -> None:
    """Writes the results as a finished run, in the place of whatever is in the storage.

    Args:
        results: Of images whose ids differ, in any order.
    """
    for info in list(storage.iter_objects()):
        storage.delete(info.key)
    ordered = sorted(results, key=lambda result: result.image.image_id)
    run_id = claim_run(storage, spec.to_json())
    plan = seal_plan(storage, lambda after: (result.image for result in ordered), shard_size=None, num_workers=1)
    left = iter(ordered)
    for shard in range(plan.num_shards):
        part = list(islice(left, plan.num_images_of(shard)))
        files = {
            name: write_table(storage, name, shard, _ATTEMPT, to_parquet(table, {}), table.num_rows)
            for name, table in zip(("images", "instances"), to_tables(part, shard=shard, run_id=run_id))
        }
        statuses = {status: sum(result.status == status for result in part) for status in {r.status for r in part}}
        commit_shard(storage, Commit(run_id, shard, _ATTEMPT, **files, statuses=statuses, timings_s={}))
    seal_run(storage, plan, run_id)
