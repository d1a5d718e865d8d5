"""Images whose pixel values number the objects (VOC's SegmentationObject, Cityscapes' instanceIds), read and
drawn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pipeline.dataset.types import AnnotatedImage, AnnotationError, Box, Instance
from pipeline.masks.boxes import xywh_to_xyxy
from pipeline.masks.rle import rle_areas, rle_bbox, runs_to_rle
from pipeline.storage import files

OVERLAPS = ("refuse", "smaller_on_top")


def read_id_map(uri: str) -> np.ndarray:
    """Pixel values of a palette, grey or 16-bit image: int64 [H, W]; a palette's colours do not matter.

    Raises:
        AnnotationError: absent, unreadable, or a colour image.
    """
    try:
        with Image.open(io.BytesIO(files.read_bytes(uri))) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise AnnotationError(f"{uri} must be a palette, grey or 16-bit image, not of mode {image.mode}")
            return np.asarray(image).astype(np.int64)
    except AnnotationError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise AnnotationError(f"{uri} cannot be read: {error}") from None


def write_id_map(uri: str, ids: np.ndarray, *, bits: int = 8) -> None:
    """Writes a PNG whose pixel values are the ids: a palette of VOC's colours at 8 bits, grey at 16."""
    if bits == 16:
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files.write_bytes(uri, buffer.getvalue())


def voc_palette() -> bytes:
    """VOC's 256 colours, RGB: the bits of the index dealt out to the three channels from the top."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()


def id_map_to_instances(ids: np.ndarray, labels: Mapping[int, int]) -> dict[int, Instance]:
    """One instance, with the label given, for each id that occurs; ids without a label are left out.

    One pass over the runs of the whole map, so the time does not grow with the number of objects.
    """
    height, width = ids.shape
    flat = ids.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], len(flat))
    values = flat[starts]
    found = [int(value) for value in np.unique(values) if int(value) in labels]
    counts = []
    for value in found:
        mine = values == value
        edges = np.stack([starts[mine], ends[mine]], axis=1).ravel()
        runs = np.diff(np.concatenate(([0], edges, [len(flat)])))
        counts.append(runs_to_rle((runs if runs[-1] else runs[:-1]).tolist(), height, width))
    if not found:
        return {}
    areas, boxes = rle_areas(counts), xywh_to_xyxy(rle_bbox(counts, height, width))
    return {
        value: Instance(
            label=labels[value],
            box=_as_box(boxes[place]),
            segmentation={"size": [height, width], "counts": counts[place]},
            area=float(areas[place]),
        )
        for place, value in enumerate(found)
    }


def _as_box(values: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return (x1, y1, x2, y2)


def draw_id_map(image: AnnotatedImage, ids: list[int], *, overlap: str = "refuse") -> np.ndarray:
    """int64 [H, W]: at each pixel the id of the object there, 0 for none.

    Args:
        image: its instances are drawn.
        ids: one for each instance; 0 leaves an instance out.
        overlap: "refuse", or "smaller_on_top" where two objects share pixels, of which one must then lose
            them.

    Raises:
        AnnotationError: objects share pixels, and that is refused.
    """
    canvas = np.zeros((image.height, image.width), dtype=np.int64)
    masks = [
        (instance.mask(image.height, image.width) != 0, value)
        for instance, value in zip(image.instances, ids, strict=True)
        if value
    ]
    if overlap == "smaller_on_top":
        masks.sort(key=lambda pair: -int(pair[0].sum()))
    for mask, value in masks:
        if overlap == "refuse" and (shared := int((canvas[mask] != 0).sum())):
            raise AnnotationError(
                f"image {image.file_name}: two objects share {shared} pixels, which a map of ids cannot "
                "hold; allow that the smaller one lies on top (overlap=smaller_on_top)"
            )
        canvas[mask] = value
    return canvas
