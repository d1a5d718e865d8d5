"""Notes of an evaluation: sentences about what was left out of the figures, or is understated, with counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.evaluation.coco import MAX_DETECTIONS, CocoMatches
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.run_detections import Coverage

_HIGHEST_SCORE_THRESHOLD = 0.05  # a run that keeps only higher scores loses the tail of its precision-recall curves
_MOST_NAMES = 10


def notes_on(
    truth: Truth,
    coco: Mapping[str, CocoMatches],
    coverage: Coverage,
    max_detections: int = MAX_DETECTIONS,
    run_classes: Mapping[int, str] | None = None,
) -> tuple[str, ...]:
    """Notes on an evaluation.

    Args:
        truth: the whole ground truth.
        coco: the matches of all images, by kind of IoU.
        max_detections: see `CocoMatches.result`.
        run_classes: names of the model's classes by category id, where known.
    """
    return (
        *notes_on_truth(truth, coverage, run_classes, has_masks="segm" in coco),
        *(note for matches in coco.values() for note in _on_matches(truth, matches, max_detections)),
    )


def notes_on_truth(
    truth: Truth, coverage: Coverage, run_classes: Mapping[int, str] | None, *, has_masks: bool
) -> tuple[str, ...]:
    """The notes that follow from the truth and from what was left out; `has_masks`: masks are compared."""
    return (*_on_annotations(truth, has_masks), *_on_coverage(coverage), *_on_classes(truth, run_classes))


def understated(run_score_threshold: float | None) -> str | None:
    """A note where a run kept only high scores, so that its AP is understated."""
    if run_score_threshold is None or run_score_threshold <= _HIGHEST_SCORE_THRESHOLD:
        return None
    return (
        f"the run kept scores from {run_score_threshold:g} up only; AP is understated, segment with a "
        f"score_threshold of {_HIGHEST_SCORE_THRESHOLD:g} or less to compare with published figures"
    )


def _on_annotations(truth: Truth, has_masks: bool) -> Iterator[str]:
    annotations = truth.annotations
    unusable: defaultdict[str, list[str]] = defaultdict(list)  # names of annotations by what they lack
    for index in np.flatnonzero(~annotations.has_mask if has_masks else ~annotations.has_box).tolist():
        lacking = "mask" if has_masks else "box"
        unusable[f"{lacking} that can be used: {annotations.mask_faults[index]}"].append(annotations.labels[index])
    for lacking, labels in unusable.items():
        yield (
            f"{len(labels)} annotations are ignore regions, which count neither way, because they have no {lacking} "
            f"({', '.join(labels[:_MOST_NAMES])}{_more(len(labels))})"
        )
    if has_masks:
        empty = [n for n, counts in enumerate(truth.rles) if _is_empty(counts) and annotations.has_mask[n]]
        if empty:
            named = ", ".join(annotations.labels[index] for index in empty[:_MOST_NAMES])
            yield (
                f"{len(empty)} annotations have a mask without a pixel ({named}{_more(len(empty))}); they count as "
                "missed"
            )
    yield from truth.notes


def _is_empty(counts: bytes) -> bool:
    """Whether an RLE string has one run alone, which is outside; a number ends with a character without bit 32."""
    return len(counts) < 8 and sum(not (character - 48) & 32 for character in counts) == 1


def _on_coverage(coverage: Coverage) -> Iterator[str]:
    if coverage.failed or coverage.num_missing:
        reasons = [f"{count} {status}" for status, count in sorted(coverage.failed.items())]
        if coverage.num_missing:
            reasons.append(f"{coverage.num_missing} not in the run")
        yield (
            f"{coverage.num_images - coverage.num_ok} of {coverage.num_images} images were not segmented "
            f"({', '.join(reasons)}); their {coverage.num_truths_lost} objects count as missed"
        )
    if coverage.num_extra_images:
        images = "1 image" if coverage.num_extra_images == 1 else f"{coverage.num_extra_images} images"
        yield f"{images} of the run not in the ground truth; detections there were left out"
    if coverage.num_other_category:
        yield f"{coverage.num_other_category} detections of categories without ground truth were left out"
    if coverage.num_not_labelled or coverage.num_truths_not_labelled:
        yield (
            f"{coverage.num_truths_not_labelled} objects and {coverage.num_not_labelled} detections of classes that "
            "nobody looked for on their image were left out"
        )
    if coverage.num_other_size:
        yield (
            f"{coverage.num_other_size} masks have another size than their image in the ground truth, so they match "
            "nothing"
        )


def _on_classes(truth: Truth, run_classes: Mapping[int, str] | None) -> Iterator[str]:
    objects = truth.annotations.category_ids[~truth.annotations.is_crowd]
    if not len(objects):
        yield "the ground truth has no object that counts, so that AP and recall are not measured"
    unknown = [n for n in truth.names if n not in run_classes and (objects == n).any()] if run_classes else []
    if unknown:
        own = ", ".join(list((run_classes or {}).values())[:_MOST_NAMES]) + _more(len(run_classes or {}))
        yield (
            f"the model, whose classes are {own}, does not have these of the ground truth: {_listing(truth, unknown)}; "
            f"their {int(np.isin(objects, unknown).sum())} objects count as missed"
        )


def _on_matches(truth: Truth, matches: CocoMatches, max_detections: int) -> Iterator[str]:
    kind, limit = matches.iou_type, matches.limit(max_detections)
    if matches.num_unreadable:
        yield f"{matches.num_unreadable} detections have a score or geometry that cannot be read ({kind}); left out"
    if (is_cut := matches.rank >= limit).any():
        yield (
            f"{kind} AP counts the best {limit} detections of an image and class: {int(is_cut.sum())} others on "
            f"{len(np.unique(matches.images[is_cut]))} images were left out of it, while precision and recall count "
            "them; evaluate.max_detections sets the limit"
        )
    num_objects = np.bincount(
        matches.object_categories, weights=matches.is_counted[:, 0], minlength=len(matches.category_ids)
    )
    has_none = np.flatnonzero(num_objects == 0)
    num_false = int(np.isin(matches.categories, has_none).sum())
    if num_false and num_objects.any():
        classes = np.intersect1d(has_none, matches.categories)
        yield (
            f"{num_false} detections ({kind}) of {_listing(truth, matches.category_ids[classes].tolist())}, of which "
            "the ground truth has no object that counts, do not lower AP"
        )


def _listing(truth: Truth, category_ids: list[int]) -> str:
    return ", ".join(truth.names[number] for number in category_ids[:_MOST_NAMES]) + _more(len(category_ids))


def _more(num: int) -> str:
    return f" and {num - _MOST_NAMES} more" if num > _MOST_NAMES else ""
