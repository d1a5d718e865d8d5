"""Encoding of a shard's results as its two tables, images and instances, with masks as COCO's compressed RLE."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bulk.listing import PlannedImage
from pipeline.images.slices import MaskedInstances, SlicedDetections, merge
from pipeline.masks.rle import encode_roi_masks_and_areas, runs_to_counts
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, OK

if TYPE_CHECKING:
    from model.categories import Category
    from model.inference.predictor import Detections

# Small enough that a filter on category and score skips most of a shard, large enough to compress well.
INSTANCES_ROW_GROUP = 2_048
INSTANCES_ORDER = [
    ("category", "ascending"),
    ("score", "descending"),
    ("image_id", "ascending"),
    ("instance", "ascending"),
]
_MAX_INT32 = 2**31 - 1
MAX_STRING_BYTES = 2**30  # of a table that Arrow sorts and writes as it is; a string column cannot pass 2 GiB


@dataclass
class ImageResult:
    """One image's row of the images table and its rows of the instances table.

    Attributes:
        image: the image as planned.
        status, error: one of `pipeline.schema.STATUSES`, and the reason unless ok.
        height, width: in pixels after the EXIF turn; None where unknown.
        exif_orientation: 1..8 as the file states it, None where it states none.
        instances: columns as `encode_instances` gives them; {} unless ok.
    """

    image: PlannedImage
    status: str
    error: str | None = None
    height: int | None = None
    width: int | None = None
    exif_orientation: int | None = None
    instances: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def num_instances(self) -> int:
        """Number of instances; 0 where the image was not segmented."""
        return len(self.instances.get("score", ()))


def encode_instances(
    detections: Detections | SlicedDetections,
    categories: tuple[Category, ...],
    image_size: tuple[int, int],
    mask_threshold: float,
    merge_iou: float = 1.0,
) -> dict[str, list[Any]]:
    """The instances of one image as columns, best score first; masks are encoded from the mask head's output.

    Args:
        detections: N detections, best first, boxes XYXY in pixels of the original; or those of an image's slices.
        categories: the model's class map; label k is categories[k - 1].
        image_size: (height, width) of the original image after the EXIF turn, in pixels.
        mask_threshold: probability from which a pixel belongs to the mask.
        merge_iou: mask IoU from which detections of two slices are one instance, see `pipeline.run_spec.Slicing`.

    Returns:
        The columns of INSTANCES_SCHEMA without `image_id` and `run_id`, each of N entries; empty lists at N = 0.
    """
    if isinstance(detections, SlicedDetections):
        instances = merge(detections, image_size, mask_threshold, merge_iou)
    else:
        if detections.runs is not None:
            counts, areas = runs_to_counts(*detections.runs)
        else:
            counts, areas = encode_roi_masks_and_areas(
                detections.mask_probs, detections.boxes, image_size, threshold=mask_threshold
            )
        labels, scores, boxes = detections.labels, detections.scores, detections.boxes
        instances = MaskedInstances(labels, scores, boxes, counts, areas, detections.keypoints)
    height, width = image_size
    count, keypoints = len(instances.counts), instances.keypoints
    instance_categories = [categories[label - 1] for label in instances.labels.tolist()]
    corners = np.asarray(instances.boxes, np.float32).reshape(-1, 4)
    return {
        "instance": list(range(count)),
        "category_id": [category.id for category in instance_categories],
        "category": [category.name for category in instance_categories],
        "score": instances.scores.tolist(),
        **{name: corners[:, column].tolist() for column, name in enumerate(("x1", "y1", "x2", "y2"))},
        "area_px": instances.areas.tolist(),
        "rle_counts": instances.counts,
        "image_height": [height] * count,
        "image_width": [width] * count,
        "keypoints": [None] * count if keypoints is None else [points.ravel().tolist() for points in keypoints],
    }


def warm_up() -> None:
    """Loads the mask encoder's compiled kernel, or compiles it (seconds), before the first image needs it."""
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
    nonempty = [result for result in results if result.status == OK and result.num_instances]
    columns: dict[str, list[Any]] = {
        name: [value for result in nonempty for value in result.instances[name]]
        for name in INSTANCES_SCHEMA.names
        if name not in ("image_id", "run_id")
    }
    columns["image_id"] = [result.image.image_id for result in nonempty for _ in range(result.num_instances)]
    columns["run_id"] = [run_id] * len(columns["image_id"])
    instances = pa.table({name: columns[name] for name in INSTANCES_SCHEMA.names}, schema=INSTANCES_SCHEMA)
    return images, sort_instances(instances)


def sort_instances(instances: pa.Table) -> pa.Table:
    """The rows of an instances table in the order of its files.

    Arrow does not sort a string column of more than 2 GiB: a larger table comes back with columns of large strings,
    which `to_parquet` writes as strings.
    """
    if instances.nbytes > MAX_STRING_BYTES:
        instances = instances.cast(_with_text(instances.schema, pa.large_string()))
    return instances.sort_by(INSTANCES_ORDER)


def _text(error: str | None) -> str | None:
    """An error as valid UTF-8: it may name a file whose name is not."""
    return None if error is None else error.encode("utf-8", "backslashreplace").decode()


def _size(pixels: int | None) -> int | None:
    """A height or width, or None where the int32 column cannot hold it: a broken header may claim any size."""
    return pixels if pixels is not None and 0 <= pixels <= _MAX_INT32 else None


def to_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """A table as the bytes of a Parquet file: zstd, page checksums, statistics, `metadata` as key-value metadata."""
    schema, buffer = _with_text(table.schema, pa.string()).with_metadata(metadata), io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        schema,
        compression="zstd",
        write_page_checksum=True,
        write_statistics=True,
        write_page_index=True,
        use_dictionary=[name for name in ("category", "run_id", "image_id", "status") if name in table.column_names],
    ) as writer:
        for rows in _row_groups(table):
            if table.schema != schema:  # a copy, whose large strings count from its own first row
                rows = rows.take(pa.array(range(rows.num_rows))).cast(schema)
            writer.write_table(rows)
    return buffer.getvalue()


def _with_text(schema: pa.Schema, kind: pa.DataType) -> pa.Schema:
    """A schema whose text columns are of this kind: strings or large strings."""
    texts = (pa.string(), pa.large_string())
    return pa.schema([field.with_type(kind) if field.type in texts else field for field in schema])


def _row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """A table in slices of INSTANCES_ROW_GROUP rows, fewer where a string column could not hold them; at least one."""
    start = 0
    while start < max(1, table.num_rows):
        rows = table.slice(start, INSTANCES_ROW_GROUP)
        while rows.nbytes > MAX_STRING_BYTES and rows.num_rows > 1:
            rows = rows.slice(0, rows.num_rows // 2)
        yield rows
        start += max(1, rows.num_rows)
