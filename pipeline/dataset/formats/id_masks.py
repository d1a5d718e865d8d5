"""Id masks: reads and draws images whose pixel values number the objects, as VOC and Cityscapes have them."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Instance
from pipeline.masks.rle import rle_areas, rle_bbox, runs_to_rle
from pipeline.storage.files import Location

OVERLAPS = ("refuse", "smaller_on_top")


def read_id_map(path: Location) -> np.ndarray:
    """Pixel values of a palette, grey or 16-bit image: int64 [H, W]; of a palette image, the indices.

    Raises:
        AnnotationError: absent, unreadable, or a colour image.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise AnnotationError(f"{path} must be a palette, grey or 16-bit image, not of mode {image.mode}")
            return np.asarray(image).astype(np.int64)
    except AnnotationError:
        raise
    except UnidentifiedImageError:  # its message has the address of a buffer
        raise AnnotationError(f"{path} cannot be read: it is no image of a format that is known") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise AnnotationError(f"{path} cannot be read: {error}") from None


def write_id_map(path: Location, ids: np.ndarray, *, bits: int = 8) -> None:
    """Writes a PNG whose pixel values are the ids: a palette of VOC's colours at 8 bits, grey at 16."""
    if bits == 16:
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def voc_palette() -> bytes:
    """VOC's 256 RGB colours: the bits of the index go to the three channels in turn, highest bit first."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()


def id_map_to_instances(ids: np.ndarray, labels: Mapping[int, int]) -> dict[int, Instance]:
    """Instances of an id map [H, W] by id, with exact RLE, box and area; ids that have no label are left out.

    Ids that do not occur have no instance. The map's runs are found in one pass, not one pass for each object.
    """
    height, width = ids.shape
    flat = ids.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], len(flat))
    values = flat[starts]
    labelled_ids = [int(value) for value in np.unique(values) if int(value) in labels]
    counts = []
    for value in labelled_ids:
        is_object = values == value
        edges = np.stack([starts[is_object], ends[is_object]], axis=1).ravel()
        runs = np.diff(np.concatenate(([0], edges, [len(flat)])))
        counts.append(runs_to_rle((runs if runs[-1] else runs[:-1]).tolist(), height, width))
    if not labelled_ids:
        return {}
    areas, boxes = rle_areas(counts).tolist(), rle_bbox(counts, height, width).tolist()
    return {
        value: Instance(
            label=labels[value],
            box=(x, y, x + side_x, y + side_y),
            segmentation={"size": [height, width], "counts": counts[index]},
            area=float(areas[index]),
        )
        for index, (value, (x, y, side_x, side_y)) in enumerate(zip(labelled_ids, boxes, strict=True))
    }


def check_disjoint(annotated: AnnotatedSet, *, overlap: str = "refuse") -> None:
    """Checks that `draw_id_map` can draw every image, so that nothing is written of a set that it refuses.

    Raises:
        AnnotationError: see `draw_id_map`.
    """
    for image in annotated.images if overlap == "refuse" else ():
        draw_id_map(image, list(range(1, len(image.instances) + 1)))


def draw_id_map(image: AnnotatedImage, ids: list[int], *, overlap: str = "refuse") -> np.ndarray:
    """An image's instances as an id map: int64 [H, W], the id of the object at each pixel, 0 for none.

    Args:
        image: its instances are drawn.
        ids: one for each instance; 0 leaves an instance out.
        overlap: where objects share pixels, "refuse" raises and "smaller_on_top" gives the pixels to the smaller one.

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
