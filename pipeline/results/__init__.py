"""The way back to people: query a run's tables, measure them against ground truth, look at them, hand them on."""

from pipeline.results.export import crops, to_coco, to_coco_results, to_polygons, to_yolo
from pipeline.results.query import (
    counts,
    decode_mask,
    decode_masks,
    instances_dataset,
    iter_instances,
    iter_shards,
    load_images,
    load_instances,
)
from pipeline.results.render import overlay

__all__ = [
    "counts",
    "crops",
    "decode_mask",
    "decode_masks",
    "instances_dataset",
    "iter_instances",
    "iter_shards",
    "load_images",
    "load_instances",
    "overlay",
    "to_coco",
    "to_coco_results",
    "to_polygons",
    "to_yolo",
]
