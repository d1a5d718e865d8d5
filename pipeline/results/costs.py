"""Costs of a run: seconds that its predictors took for an image, and how large its masks are, in pixels and as RLE."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.runs import AnyRun, Runs
from pipeline.schema import OK
from pipeline.tables import iter_instances

_PREDICTED = (OK, "predict_failed")  # statuses of images that came to the predictor


@dataclass(frozen=True)
class RunCosts:
    """What a run has cost and holds; NaN where nothing says it.

    Attributes:
        num_instances: of all images.
        predict_s: seconds an image, of one worker, from pixels to detections; with SAM's masks, where it refines. The
            shards' commits say it; repairs are left out, and images that could not be read.
        mask_px: mean area of a mask, in pixels.
        mask_bytes: mean length of a mask's RLE, as it stands in the table before Parquet compresses it.
    """

    num_instances: int
    predict_s: float
    mask_px: float
    mask_bytes: float


def costs_of(run: AnyRun) -> RunCosts:
    """The costs of a finished run, or of several. Reads two columns, in flat memory."""
    count, area, length = 0, 0, 0
    for frame in iter_instances(run, ["area_px", "rle_counts"]):
        count += len(frame)
        area += int(frame["area_px"].sum())
        length += int(frame["rle_counts"].str.len().sum())
    totals = [each.final for each in (run.runs if isinstance(run, Runs) else (run,))]
    seconds = [each.worker_seconds.get("predict") for each in totals if each is not None]
    num_images = sum(each.statuses.get(status, 0) for each in totals if each is not None for status in _PREDICTED)
    known = [value for value in seconds if value is not None]
    has_all = len(known) == len(totals) and num_images > 0
    return RunCosts(
        num_instances=count,
        predict_s=sum(known) / num_images if has_all else float("nan"),
        mask_px=area / count if count else float("nan"),
        mask_bytes=length / count if count else float("nan"),
    )
