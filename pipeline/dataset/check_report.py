"""Pictures of the faults that `check_data` found, with the object at fault in red."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from pipeline.dataset.check import DataReport, Example
from pipeline.dataset.photos import UnusablePhoto, WrongSize, load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.storage.files import Location


def draw_offenders(report: DataReport, folder: str | Location, *, max_pictures: int = 50) -> list[str]:
    """Writes a PNG of each example whose photo can be read, and returns their URIs.

    The object at fault is red, the photo's other objects are yellow. A grey border shows what is outside the image.
    """
    written: list[str] = []
    for finding in report.findings:
        for number, example in enumerate(finding.examples):
            if len(written) == max_pictures:
                return written
            if example.image is None:
                continue
            try:
                picture = _draw(example)
            except UnusablePhoto:
                continue
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            path = Location.of(folder) / f"{finding.kind}_{number:02d}.png"
            path.write_bytes(buffer.getvalue())
            written.append(path.uri)
    return written


def _draw(example: Example) -> Image.Image:
    image = example.image
    assert image is not None
    pixels = _displayable(replace(image, extra_paths=()))
    height, width = pixels.shape[:2]
    margin = max(8, max(height, width) // 16)
    canvas = Image.new("RGB", (width + 2 * margin, height + 2 * margin), (96, 96, 96))
    canvas.paste(Image.fromarray(pixels), (margin, margin))
    pen = ImageDraw.Draw(canvas)
    line_width = max(1, max(height, width) // 400)
    others = [i for i in image.instances if i is not example.instance]
    at_fault = [] if example.instance is None else [example.instance]
    for instances, colour in ((others, (255, 220, 0)), (at_fault, (255, 0, 0))):
        for instance in instances:
            x1, y1, x2, y2 = (value + margin for value in instance.box)
            pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line_width)
            polygons = instance.segmentation if isinstance(instance.segmentation, list) else []
            for polygon in polygons:
                points = [(x + margin, y + margin) for x, y in zip(polygon[0::2], polygon[1::2])]
                pen.line([*points, points[0]], fill=colour, width=line_width)
    pen.text((4, 2), f"{example.file_name}: {example.detail}", fill=(255, 255, 255))
    return canvas


def _displayable(image: AnnotatedImage) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a photo; of many bands the first three, or the first one, scaled to their own range."""
    try:
        return load_photo(image)[0]
    except WrongSize:  # drawn as stored, which shows the difference
        return _read_as_stored(image.path)
    except UnusablePhoto:
        bands = load_photo(image, in_channels=None)[0]
        bands = np.nan_to_num(bands[..., [0, 1, 2]] if bands.shape[2] >= 3 else bands[..., [0, 0, 0]])
        return (255 * (bands - bands.min()) / max(np.ptp(bands), 1e-9)).astype(np.uint8)


def _read_as_stored(path: Location) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as photo:
            return np.array(photo.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise UnusablePhoto(str(error)) from None
