"""What becomes of a shard's images, as the two tables: one row an image, one row an instance, masks as RLE."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.slices import SlicedDetections, merge
from pipeline.masks.rle import encode_roi_masks_and_areas, runs_to_counts
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, OK

if TYPE_CHECKING:
    from model.categories import Category
    from model.inference.predictor import Detections

# Small enough that a filter on category and score skips most of a shard, large enough to compress well.
INSTANCES_ROW_GROUP = 2_048
_LARGEST_SIZE = 2**31 - 1


@dataclass
class ImageResult:
    """One image's end: status and reason, size after the EXIF turn, and its instances' columns (empty unless ok)."""

    image: PlannedImage
    status: str
    error: str | None = None
    height: int | None = None
    width: int | None = None
    exif_orientation: int | None = None
    instances: dict[str, list] = field(default_factory=dict)

    @property
    def num_instances(self) -> int:
        """Instances found; 0 where the image was not segmented."""
        return len(self.instances.get("score", ()))


def encode_instances(
    detections: Detections | SlicedDetections,
    categories: tuple[Category, ...],
    image_size: tuple[int, int],
    mask_threshold: float,
    merge_iou: float = 1.0,
) -> dict[str, list]:
    """The instances' columns of one image, in order of score, masks encoded straight from the mask head's output.

    Args:
        detections: N detections, best first, boxes in original pixels; or those of an image's slices.
        categories: the model's class map; label k is categories[k - 1].
        image_size: (height, width) of the original image after the EXIF turn, in pixels.
        mask_threshold: probability from which a pixel belongs to the mask.
        merge_iou: how alike detections of two slices are that are one instance, see `pipeline.bulk.slices`.

    Returns:
        Columns of INSTANCES_SCHEMA that belong to an instance alone, each of N entries; empty lists at N = 0.
    """
    if isinstance(detections, SlicedDetections):
        found = merge(detections, image_size, mask_threshold, merge_iou)
    else:
        if detections.runs is not None:
            counts, areas = runs_to_counts(*detections.runs)
        else:
            counts, areas = encode_roi_masks_and_areas(
                detections.mask_probs, detections.boxes, image_size, threshold=mask_threshold
            )
        found = {**vars(detections), "counts": counts, "areas": areas}
    height, width = image_size
    count, keypoints = len(found["counts"]), found["keypoints"]
    named = [categories[label - 1] for label in found["labels"].tolist()]
    boxes = np.asarray(found["boxes"], np.float32).reshape(-1, 4)
    return {
        "instance": list(range(count)),
        "category_id": [category.id for category in named],
        "category": [category.name for category in named],
        "score": found["scores"].tolist(),
        **{name: boxes[:, column].tolist() for column, name in enumerate(("x1", "y1", "x2", "y2"))},
        "area_px": found["areas"].tolist(),
        "rle_counts": found["counts"],
        "image_height": [height] * count,
        "image_width": [width] * count,
        "keypoints": [None] * count if keypoints is None else [points.ravel().tolist() for points in keypoints],
    }


def warm_up() -> None:
    """Loads the mask encoder's compiled kernel, or compiles it, before the first image asks for it (seconds)."""
    encode_roi_masks_and_areas(np.ones((1, 2, 2), np.float32), np.ones((1, 4), np.float32), (2, 2))


def to_tables(results: list[ImageResult], *, shard: int, run_id: str) -> tuple[pa.Table, pa.Table]:
    """The images table and the instances table of one shard.

    Images keep the plan's order. Instances are sorted by category, then best score first, then image and rank, so
    that row groups have narrow ranges and equal results give equal bytes.
    """
    images = pa.Table.from_pylist(
        [
            {
                "image_id": result.image.image_id,
                "uri": result.image.uri,
                "etag": result.image.etag,
                "size_bytes": result.image.size_bytes,
                "status": result.status,
                "error": _text(result.error),
                "height": _size(result.height),
                "width": _size(result.width),
                "exif_orientation": result.exif_orientation,
                "num_instances": result.num_instances,
                "shard": shard,
            }
            for result in results
        ],
        schema=IMAGES_SCHEMA,
    )
    found = [result for result in results if result.status == OK and result.num_instances]
    columns: dict[str, list] = {
        name: [value for result in found for value in result.instances[name]]
        for name in INSTANCES_SCHEMA.names
        if name not in ("image_id", "run_id")
    }
    columns["image_id"] = [result.image.image_id for result in found for _ in range(result.num_instances)]
    columns["run_id"] = [run_id] * len(columns["image_id"])
    instances = pa.table({name: columns[name] for name in INSTANCES_SCHEMA.names}, schema=INSTANCES_SCHEMA)
    order = [("category", "ascending"), ("score", "descending"), ("image_id", "ascending"), ("instance", "ascending")]
    return images, instances.sort_by(order)


def _text(words: str | None) -> str | None:
    """Words that UTF-8 can hold: an error may name a file whose name is no UTF-8."""
    return None if words is None else words.encode("utf-8", "backslashreplace").decode()


def _size(pixels: int | None) -> int | None:
    """A broken header may claim any size; what the column cannot hold is none."""
    return pixels if pixels is not None and 0 <= pixels <= _LARGEST_SIZE else None


def to_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """A table as a Parquet file: zstd, page checksums, statistics, and the run's own words in the file's metadata."""
    table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=INSTANCES_ROW_GROUP,
        write_page_checksum=True,
        write_statistics=True,
        write_page_index=True,
        use_dictionary=[name for name in ("category", "run_id", "image_id", "status") if name in table.column_names],
    )
    return buffer.getvalue()
