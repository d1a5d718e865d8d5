"""Image files for the tests, written by Pillow, with an EXIF orientation where one is wanted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(pixels: np.ndarray, name: str = "PNG", **options: Any) -> bytes:
    """An array as a file of one of Pillow's formats."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    """EXIF with an orientation, to be saved with a file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
