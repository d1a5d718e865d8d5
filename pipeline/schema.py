"""Arrow schemas of a run's two tables, images and instances, and the values of their `status` column.

docs/schema.md describes the same for readers; a test compares the two.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1


def _field(name: str, type_: pa.DataType, about: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"about": about})


IMAGES_SCHEMA = pa.schema(
    [
        _field("image_id", pa.string(), "key relative to the corpus root; stable from run to run"),
        _field("uri", pa.string(), "where the image was read from"),
        _field("etag", pa.string(), "the store's version mark at planning time", nullable=True),
        _field("size_bytes", pa.int64(), "size of the file at planning time, in bytes", nullable=True),
        _field("status", pa.string(), "what became of the image: ok, or why it could not be segmented"),
        _field("error", pa.string(), "the reason in words; null when status is ok", nullable=True),
        _field("height", pa.int32(), "height in pixels as segmented, after the EXIF turn", nullable=True),
        _field("width", pa.int32(), "width in pixels as segmented, after the EXIF turn", nullable=True),
        _field("exif_orientation", pa.int8(), "EXIF orientation 1..8; null without one", nullable=True),
        _field("num_instances", pa.int32(), "rows of this image in instances; 0 unless status is ok"),
        _field("shard", pa.int32(), "number of the shard that holds the image"),
    ]
)

INSTANCES_SCHEMA = pa.schema(
    [
        _field("image_id", pa.string(), "the image, as in images"),
        _field("instance", pa.int32(), "rank by score within its image, from 0"),
        _field("category_id", pa.int32(), "the data set's own category id"),
        _field("category", pa.string(), "the category's name"),
        _field("score", pa.float32(), "confidence, 0..1"),
        _field("x1", pa.float32(), "left edge in original pixels; boxes are half-open"),
        _field("y1", pa.float32(), "top edge in original pixels"),
        _field("x2", pa.float32(), "right edge in original pixels"),
        _field("y2", pa.float32(), "bottom edge in original pixels"),
        _field("area_px", pa.int64(), "pixels of the mask"),
        _field("rle_counts", pa.string(), "the mask as COCO's compressed RLE, column-major"),
        _field("image_height", pa.int32(), "height of the image in pixels"),
        _field("image_width", pa.int32(), "width of the image in pixels"),
        _field("keypoints", pa.list_(pa.float32()), "COCO's x, y, v triples in original pixels", nullable=True),
        _field("run_id", pa.string(), "the run that wrote the row"),
    ]
)

OK, ARCHIVED = "ok", "archived"

# Every status that an image can end with, and its meaning. No other value is ever written.
STATUSES: dict[str, str] = {
    OK: "segmented; the image's instances (possibly none) are in the instances table",
    "not_found": "the file was gone when it was read",
    "unreadable": "the store refused or failed to hand out the bytes (permissions, input/output error)",
    ARCHIVED: "the store holds the object in an archive, such as Glacier; it must be restored first",
    "changed": "size or etag differ from those at planning time",
    "too_large": "more bytes, pixels or frames than the limits allow",
    "unsupported_format": "not an image, or of a format or a number of bands that is not taken",
    "corrupt": "an image of a supported format that cannot be decoded whole, or of another size than its second file",
    "decoder_crashed": "the decoding process died on it",
    "timeout": "decoding took longer than the limit",
    "predict_failed": "the network failed on it or gave numbers that are not finite",
}

# Failures that may pass when the image is tried again; the default of `maskfleet retry`.
RETRYABLE = ("unreadable", "not_found", ARCHIVED, "timeout", "decoder_crashed", "predict_failed")
