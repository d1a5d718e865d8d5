"""Fixtures of the data set tests: a small drawn set with difficult objects, single photos, a faulty COCO file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.shapes import SHAPE_CATEGORIES, draw_image
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, mask_to_instance
from pipeline.storage.files import Location
from tests.pipeline.dataset.faulty_coco import write_faulty_coco


@pytest.fixture(scope="session")
def awkward_set(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedSet:
    """Five photos with disjoint RLE masks: shapes; a ring and an object in parts; a crowd; no object; shapes."""
    folder = tmp_path_factory.mktemp("drawn")
    images = []
    for number in range(5):
        rng = np.random.default_rng(number)
        drawn = draw_image(rng, (60 + number, 90 - number))
        height, width = drawn.pixels.shape[:2]
        instances = drawn.instances
        if number == 1:
            ring = np.zeros((height, width), dtype=bool)
            ring[5:25, 5:30] = True
            ring[10:18, 12:20] = False
            ring[13, 15] = True  # an island in the hole
            parts = np.zeros_like(ring)
            parts[30:40, 60:70] = parts[40:50, 70:80] = parts[50:, 0:9] = True  # corners touch, one at the border
            instances = (mask_to_instance(2, ring), mask_to_instance(3, parts))
        elif number == 2:
            instances = (replace(instances[0], iscrowd=True), *instances[1:])
        elif number == 3:
            instances = ()
        path = folder / f"photo_{number}.png"
        Image.fromarray(drawn.pixels).save(path)
        images.append(AnnotatedImage(number + 1, path.name, Location(str(path)), height, width, instances))
    return AnnotatedSet(tuple(images), SHAPE_CATEGORIES)


@pytest.fixture
def write_photo() -> Callable[..., np.ndarray]:
    """A function that writes a photo of random pixels, with an EXIF orientation if given, and returns the pixels."""

    def write(path: Path, height: int, width: int, *, orientation: int | None = None) -> np.ndarray:
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif)
        return pixels

    return write


@pytest.fixture
def faulty_file(tmp_path: Path, write_photo: Callable[..., np.ndarray]) -> Path:
    """A COCO file with each kind of warning, see `faulty_coco`."""
    return write_faulty_coco(tmp_path, write_photo)
