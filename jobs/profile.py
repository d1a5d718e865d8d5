"""`maskfleet segment --profile`: seconds that a bulk run spent in each stage, and advice on its settings."""

from __future__ import annotations

import math

from jobs.config.segment import SegmentConfig
from pipeline.bulk.progress import BACKGROUND, Progress

STAGES = {
    "wait_for_images": "the worker waits for decoded images",
    "predict": "the network, from pixels to detections",
    "wait_for_encoding": "the worker waits for masks to be encoded",
    "write": "tables and commit",
    "fetch": "reading files, in threads",
    "decode": "decoding, in child processes",
    "encode": "masks to RLE, in a thread",
}
# A share of the workers' time: waiting for images or writing up to this much needs no advice.
_SMALL_SHARE = 0.05
# Decode children beyond those that keep up with an average image, for images that are larger.
_DECODE_RESERVE = 1.2


def describe_profile(progress: Progress, config: SegmentConfig) -> str:
    """A table of the stages, and sentences of advice.

    Args:
        progress: the last state of a run. It counts the images and seconds of this call, not those of earlier calls.
        config: the run's configuration.
    """
    stages_s, num_images = progress.stages_s, sum(progress.statuses.values())
    own_s = sum(seconds for stage, seconds in stages_s.items() if stage not in BACKGROUND)
    if not num_images or own_s == 0:
        return "profile: this call has segmented nothing"
    lines = [f"profile: {num_images:,} images in {progress.elapsed_s:.1f} s, {own_s:.1f} s of workers at work"]
    lines.append(f"  {'stage':<18} {'seconds':>9} {'share':>6} {'ms an image':>12}")
    for stage, meaning in STAGES.items():
        seconds = stages_s.get(stage, 0.0)
        share = "beside" if stage in BACKGROUND else f"{seconds / own_s:.0%}"
        lines.append(f"  {stage:<18} {seconds:>9.2f} {share:>6} {1e3 * seconds / num_images:>12.2f}  {meaning}")
    return "\n".join([*lines, *(f"advice: {sentence}" for sentence in _advice(stages_s, own_s, config))])


def _advice(stages_s: dict[str, float], own_s: float, config: SegmentConfig) -> list[str]:
    predict_s, waiting_s = stages_s.get("predict", 0.0), stages_s.get("wait_for_images", 0.0)
    has_gpu = config.segment.gpus_per_worker > 0
    predictor = "GPU" if has_gpu else "predictor"
    if predict_s == 0:
        return ["no image reached the network"]
    children = config.segment.decode_children
    needed = max(1, math.ceil(_DECODE_RESERVE * stages_s.get("decode", 0.0) / predict_s))
    sentences = []
    if waiting_s / own_s <= _SMALL_SHARE:
        busy = f"{predict_s / own_s:.0%}"
        sentences.append(f"the {predictor} is the bottleneck, as it should be; it works {busy} of the time")
    elif stages_s.get("fetch", 0.0) > stages_s.get("decode", 0.0):
        sentences.append(f"the {predictor} waits for files to be read: a nearer store, or more actors on it at a time")
    elif needed > children:
        sentences.append(f"the {predictor} waits for decoding: segment.decode_children={needed} would keep it busy")
    else:
        sentences.append(f"the {predictor} waits at the beginning of each shard: a larger corpus.shard_size has fewer")
    if has_gpu:
        sentences.append(
            f"for each GPU {needed} cores decode and one does the rest: segment.decode_children={needed} "
            f"segment.cpus_per_worker={needed + 1}"
        )
    elif needed < children:
        sentences.append(f"{needed} of {children} decode children are enough; the network has the other cores")
    if stages_s.get("write", 0.0) / own_s > _SMALL_SHARE:
        sentences.append("writing takes its time: a larger corpus.shard_size writes fewer files")
    return sentences
