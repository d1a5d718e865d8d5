"""Evaluation in shares of the images, for several workers: merged, they give exactly the figures of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.breakdown import confusion_matrix, threshold_figures
from pipeline.evaluation.coco import evaluate_part, merge_parts
from pipeline.evaluation.ground_truth import EvaluationError, Truth, match_images
from pipeline.evaluation.input_check import is_plain_truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import Matches, match
from pipeline.evaluation.metrics import Metrics, check_class_map, columns_for, notes_on, score_threshold_of
from pipeline.evaluation.run_detections import Coverage, align, cover
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


@dataclass(frozen=True)
class MeasuredShare:
    """What a worker returns for a share.

    Attributes:
        coco: see `evaluate_part`, by kind of IoU.
        matches: by kind of IoU; indices of annotations are those of the share's truth.
        image_ids, category_ids: int64 [D], of the rows of `matches`, by kind of IoU.
        coverage: counts over the share.
        confusion: see `confusion_matrix`; None where it was not asked for.
    """

    coco: dict[str, bytes]
    matches: dict[str, Matches]
    image_ids: dict[str, np.ndarray]
    category_ids: dict[str, np.ndarray]
    coverage: Coverage
    confusion: pd.DataFrame | None


def share_out(run: Run, truth: Truth, num_shares: int) -> list[Share]:
    """Shares of about equally many instances: at most `num_shares`, and one for images that the run does not have.

    Raises:
        EvaluationError: a run that does not fit the truth.
    """
    check_class_map(run, truth)
    images = load_images(run, ["image_id", "status", "shard"])
    truth_id = match_images(images["image_id"], truth.images).truth_id
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
            part = truth.only(truth_id[image_id] for image_id in group_images["image_id"])
            shares.append(Share(tuple(files[n] for n in sorted(group)), group_images[["image_id", "status"]], part))
    in_run = set(truth_id.values())
    if missing := [image["id"] for image in truth.images if image["id"] not in in_run]:
        shares.append(Share((), images.iloc[:0][["image_id", "status"]], truth.only(missing)))
    return shares


def measure_share(
    run: Run,
    share: Share,
    *,
    iou_types: Sequence[str],
    score_threshold: float,
    iou_threshold: float,
    also: Sequence[str] = (),
) -> MeasuredShare:
    """Measures one share. Of the run it reads the instances of the share's files and nothing else.

    Args:
        iou_types: of bbox, segm, keypoints.
        score_threshold, iou_threshold: see `evaluate`.
        also: empty, or "confusion".

    Raises:
        OddInput: masks, scores or a truth that the compiled evaluator does not take.
    """
    instances = load_table("instances", run.only(share.files), columns_for(iou_types))
    table, coverage = align(
        instances, share.images, share.truth, masks="segm" in iou_types, keypoints="keypoints" in iou_types
    )
    thresholds: dict[str, Any] = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    confusion_type = "segm" if "segm" in iou_types else "bbox"
    overlaps = {kind: find_overlaps(share.truth, table, kind) for kind in iou_types}
    matches = {
        kind: match(share.truth, table, kind, **thresholds, overlaps=of_kind)
        for kind, of_kind in overlaps.items()
        if kind != "keypoints"
    }
    return MeasuredShare(
        {kind: evaluate_part(share.truth, table, kind, overlaps=of_kind) for kind, of_kind in overlaps.items()},
        matches,
        {kind: table.image_ids[matched.rows] for kind, matched in matches.items()},
        {kind: table.category_ids[matched.rows] for kind, matched in matches.items()},
        coverage,
        confusion_matrix(share.truth, table, iou_type=confusion_type, **thresholds) if "confusion" in also else None,
    )


def merge_shares(
    run: Run,
    truth: Truth,
    shares: Sequence[Share],
    measured: Sequence[MeasuredShare],
    *,
    score_threshold: float,
    iou_threshold: float,
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
    counted = cover(images, truth, match_images(images["image_id"], truth.images))
    summed = {name: sum(getattr(part.coverage, name) for part in measured) for name in _SUMMED}
    at_threshold = {}
    for kind in measured[0].matches:
        matches, category_ids = _merge_matches(truth, shares, measured, kind)
        at_threshold[kind] = threshold_figures(truth, category_ids, matches)
    confusion = measured[0].confusion
    for part in measured[1:]:
        confusion = confusion if part.confusion is None else confusion + part.confusion
    coverage = Coverage(**counted, **summed)
    kept = score_threshold_of(run)
    return Metrics(
        {kind: merge_parts((part.coco[kind] for part in measured), kind) for kind in measured[0].coco},
        at_threshold,
        truth.names,
        coverage,
        score_threshold,
        iou_threshold,
        kept,
        notes_on(coverage, kept),
        confusion=confusion,
    )


def check_can_be_shared(truth: Truth, iou_types: Sequence[str]) -> None:
    """Checks that the truth is plain. An odd truth is evaluated by pycocotools, on all images at once.

    Raises:
        EvaluationError: the truth is odd.
    """
    for kind in iou_types:
        if not is_plain_truth(truth.content, kind):
            raise EvaluationError(
                f"the ground truth has fields missing, of another type, or ids twice ({kind}); such a truth is "
                "measured whole, by pycocotools"
            )


def _merge_matches(
    truth: Truth, shares: Sequence[Share], measured: Sequence[MeasuredShare], kind: str
) -> tuple[Matches, np.ndarray]:
    """The matches of all shares, and the category ids that their `rows` refer to.

    They come in the order of an evaluation of the whole, so that sums over them are rounded alike.
    """
    index_of = {image["id"]: index for index, image in enumerate(truth.images)}
    truth_images = np.array([index_of.get(entry["image_id"], -1) for entry in truth.annotations], np.int64)
    found = np.zeros(len(truth.annotations), bool)
    images, truths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for share, part in zip(shares, measured, strict=True):
        # The share's annotations as indices into those of the whole truth.
        indices = np.flatnonzero(np.isin(truth_images, [index_of[image["id"]] for image in share.truth.images]))
        matches = part.matches[kind]
        found[indices] = matches.found
        images.append(np.array([index_of[image_id] for image_id in part.image_ids[kind].tolist()], np.int64))
        truths.append(np.where(matches.truths >= 0, indices[matches.truths], -1) if len(indices) else matches.truths)
    order = np.argsort(np.concatenate(images), kind="stable")

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(part.matches[kind], name) for part in measured)])[order]

    whole = Matches(
        rows=np.arange(len(order)),
        truths=np.concatenate(truths)[order],
        ious=joined("ious", float),
        ignored=joined("ignored", bool),
        found=found,
        counted=~truth.is_crowd,
    )
    return whole, np.concatenate([np.zeros(0, np.int64), *(part.category_ids[kind] for part in measured)])[order]
