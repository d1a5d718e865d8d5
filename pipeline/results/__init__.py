"""Results for people: overlays, exports, the HTML report, the history of evaluations, drift.

The functions analysts ask for first can be imported from here; `maskfleet` has them all.
"""

from pipeline.tables import (
    counts,
    decode_mask,
    decode_masks,
    instances_dataset,
    iter_instances,
    iter_shards,
    load_images,
    load_instances,
)

__all__ = [
    "counts",
    "decode_mask",
    "decode_masks",
    "instances_dataset",
    "iter_instances",
    "iter_shards",
    "load_images",
    "load_instances",
]
