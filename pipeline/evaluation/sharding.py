"""Evaluation in shares of the images, for several workers: merged, they give exactly the figures of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.coco import join_matches
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.matching import Matches
from pipeline.evaluation.metrics import (
    Measured,
    Metrics,
    classes_of,
    columns_for,
    measure,
    score_threshold_of,
    to_metrics,
)
from pipeline.evaluation.run_detections import align, check_categories, cover, match_images
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.manifest import Run, ShardFiles
from pipeline.tables import load_images, load_table

if TYPE_CHECKING:
    import pandas as pd

_SUMMED = ("num_instances", "num_other_category", "num_not_labelled", "num_other_size")


@dataclass(frozen=True)
class Share:
    """Some shards of a run, and the ground truth of their images.

    Attributes:
        files: the shards' files; empty for the share of images that the run does not have.
        images: the shards' rows of the images table (`image_id`, `status`), without images that the truth lacks.
        truth: of these images, with all categories.
    """

    files: tuple[ShardFiles, ...]
    images: pd.DataFrame
    truth: Truth


def share_out(run: Run, truth: Truth, num_shares: int) -> list[Share]:
    """Shares of about equally many instances: at most `num_shares`, and one for images that the run does not have.

    Raises:
        EvaluationError: a run that does not fit the truth.
    """
    check_categories(classes_of(run), truth.names)
    images = load_images(run, ["image_id", "status", "shard"])
    truth_id = match_images(images["image_id"], truth).truth_id
    images = images[images["image_id"].isin(list(truth_id))]
    files = {each.shard: each for each in run.files}
    groups: list[list[int]] = [[] for _ in range(num_shares)]
    sizes = [0] * num_shares
    # The largest first, each to the share that has least.
    for shard in sorted(set(images["shard"].tolist()), key=lambda shard: -files[shard].instances.rows):
        least = sizes.index(min(sizes))
        groups[least].append(shard)
        sizes[least] += files[shard].instances.rows + 1
    shares = []
    for group in groups:
        group_images = images[images["shard"].isin(group)]
        if len(group_images):
            part = truth.only(np.array([truth_id[image_id] for image_id in group_images["image_id"]], np.int64))
            shares.append(Share(tuple(files[n] for n in sorted(group)), group_images[["image_id", "status"]], part))
    missing = np.setdiff1d(truth.image_ids, list(truth_id.values()))
    if len(missing):
        shares.append(Share((), images.iloc[:0][["image_id", "status"]], truth.only(missing)))
    return shares


def measure_share(run: Run, share: Share, settings: EvaluationSettings) -> Measured:
    """Measures one share. Of the run it reads the instances of the share's files and nothing else.

    Args:
        settings: of them VOC's and Cityscapes' AP, slices and the backend have no effect.
    """
    instances = load_table("instances", run.only(share.files), columns_for(settings.iou_types))
    has_masks, has_keypoints = "segm" in settings.iou_types, "keypoints" in settings.iou_types
    table, coverage = align(instances, share.images, share.truth, masks=has_masks, keypoints=has_keypoints)
    return measure(share.truth, table, coverage, settings)[0]


def merge_shares(
    run: Run, truth: Truth, shares: Sequence[Share], measured: Sequence[Measured], settings: EvaluationSettings
) -> Metrics:
    """The figures of all shares together, bit for bit those of `evaluate_run`.

    Args:
        shares, measured: in the same order, which may be any.

    Raises:
        ValueError: no share.
    """
    if not measured:
        raise ValueError("there is no share to merge")
    images = load_images(run, ["image_id", "status"])
    counted = cover(images, truth, match_images(images["image_id"], truth))
    summed = {name: sum(getattr(part.coverage, name) for part in measured) for name in _SUMMED}
    confusion = measured[0].confusion
    for part in measured[1:]:
        confusion = confusion if part.confusion is None else confusion + part.confusion
    whole = Measured(
        coco={kind: join_matches([part.coco[kind] for part in measured]) for kind in measured[0].coco},
        matches={kind: _join(truth, shares, [part.matches[kind] for part in measured]) for kind in measured[0].matches},
        coverage=replace(counted, **summed),
        confusion=confusion,
    )
    return to_metrics(truth, whole, settings, score_threshold_of(run), classes_of(run))


def _join(truth: Truth, shares: Sequence[Share], parts: Sequence[Matches]) -> Matches:
    """The matches of all shares.

    They come in the order of an evaluation of the whole, so that sums over them are rounded alike.
    """
    found, counted = np.zeros((2, len(truth.annotations)), bool)
    renumbered = []
    for share, part in zip(shares, parts, strict=True):
        # The share's annotations as indices into those of the whole truth.
        indices = np.searchsorted(truth.annotations.positions, share.truth.annotations.positions)
        found[indices], counted[indices] = part.found, part.counted
        truths = np.where(part.truths >= 0, indices[part.truths], -1) if len(indices) else part.truths
        renumbered.append(replace(part, truths=truths))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in renumbered])

    order = np.argsort(truth.index_of(joined("image_ids")), kind="stable")
    columns = {name: joined(name)[order] for name in ("image_ids", "category_ids", "truths", "ious", "ignored")}
    return Matches(rows=np.arange(len(order)), **columns, found=found, counted=counted)
