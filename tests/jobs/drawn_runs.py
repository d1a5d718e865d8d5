"""Finished runs written without a network: the annotated objects themselves as detections; and calls of the program."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal import Exit
from pipeline.bulk.commit import claim_run, commit_shard, seal_run, write_table
from pipeline.bulk.corpus import seal_plan
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.bulk.listing import iter_corpus
from pipeline.dataset.formats.reading import load_annotations
from pipeline.manifest import Commit
from pipeline.masks.rle import encode_mask, rle_areas
from pipeline.run_spec import RefineSpec
from pipeline.storage.local import LocalStorage

BOX = ("x1", "y1", "x2", "y2")


def call(*words: object, code: Exit = Exit.DONE) -> str:
    """What `maskfleet WORDS` prints, called in this process; its exit code must be `code`."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def write_run(
    data: Path,
    out: Path,
    *,
    drop_every: int,
    shard_size: int = 100,
    shift_px: int = 0,
    refine: RefineSpec | None = None,
    predict_s: float | None = None,
) -> None:
    """Writes a finished run over the validation images of `data`.

    Its detections are the ground truth's own objects; every `drop_every`-th object of an image is left out, none at 0.

    Args:
        shift_px: masks, and not boxes, lie so many pixels to the right.
        refine: what run.json says of SAM; None writes nothing of it.
        predict_s: seconds an image that the commits say; None says nothing.
    """
    storage = LocalStorage(out)
    truth = load_annotations(str(data / "val.json"))
    categories = [{"id": category.id, "name": category.name} for category in truth.categories]
    spec = {
        "model": {"sha256": "0" * 64, "categories": categories},
        "segment": {"score_threshold": 0.05, **({} if refine is None else {"refine": vars(refine)})},
        "drop_every": drop_every,
    }
    run_id = claim_run(storage, spec)
    images = partial(iter_corpus, str(data / "val"))
    plan = seal_plan(storage, lambda after: images(after=after), shard_size=shard_size, num_workers=1)
    annotated = {Path(image.file_name).name: image for image in truth.images}
    for shard in range(plan.num_shards):
        results = []
        for image in plan.read_shard(shard):
            known = annotated[image.image_id]
            kept = [instance for i, instance in enumerate(known.instances) if drop_every == 0 or i % drop_every]
            own_masks = [instance.mask(known.height, known.width) for instance in kept]
            masks = [encode_mask(np.pad(mask, ((0, 0), (shift_px, 0)))[:, : known.width]) for mask in own_masks]
            columns: dict[str, list[Any]] = {
                "instance": list(range(len(kept))),
                "category_id": [truth.categories[instance.label - 1].id for instance in kept],
                "category": [truth.categories[instance.label - 1].name for instance in kept],
                "score": [0.9 - 0.01 * i for i in range(len(kept))],
                **{name: [float(instance.box[i]) for instance in kept] for i, name in enumerate(BOX)},
                "area_px": rle_areas(masks).tolist(),
                "rle_counts": masks,
                "image_height": [known.height] * len(kept),
                "image_width": [known.width] * len(kept),
                "keypoints": [None] * len(kept),
            }
            results.append(ImageResult(image, "ok", None, known.height, known.width, None, columns))
        files = {
            name: write_table(storage, name, shard, "a", to_parquet(table, {}), table.num_rows)
            for name, table in zip(("images", "instances"), to_tables(results, shard=shard, run_id=run_id))
        }
        timings_s = {} if predict_s is None else {"predict": predict_s * len(results), "fetch": 99.0}
        commit_shard(storage, Commit(run_id, shard, "a", **files, statuses={"ok": len(results)}, timings_s=timings_s))
    seal_run(storage, plan, run_id)
