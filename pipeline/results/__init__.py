"""The way back to people: query a run's tables, measure them against ground truth, look at them, hand them on."""

from pipeline.results.query import (
    counts,
    decode_mask,
    decode_masks,
    instances_dataset,
    iter_instances,
    load_images,
    load_instances,
)

__all__ = [
    "counts",
    "decode_mask",
    "decode_masks",
    "instances_dataset",
    "iter_instances",
    "load_images",
    "load_instances",
]
