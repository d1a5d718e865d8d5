"""A small run with known answers: drawn shapes, found almost as they are, written as a real run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.shapes import SHAPE_CATEGORIES, draw_image
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet
from tests.pipeline.made_run import image_row, instance_row, write_run


@dataclass(frozen=True)
class DrawnRun:
    """uri: of the run; truth: what is really there; photos: their folder; masks by (image_id, instance)."""

    uri: str
    truth: AnnotatedSet
    photos: Path
    masks: dict[tuple[str, int], np.ndarray]

    @property
    def coco(self) -> dict[str, Any]:
        return to_coco(self.truth)


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> DrawnRun:
    """Eight drawn photos in three shards; the last one is corrupt. Found are all shapes but one in five, one in six as
    another class, each mask a little shifted, and some that are not there."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(7)
    annotated, shards, masks = [], [], {}
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for number in range(8):
        drawn = draw_image(rng, (96 + 8 * number, 120))
        size = drawn.pixels.shape[:2]
        name = f"sub/photo_{number}.png"
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.pixels).save(path)
        annotated.append(AnnotatedImage(number + 1, name, str(path), *size, drawn.instances))
        rows = []
        if number < 7:
            for label, mask in zip(drawn.labels, drawn.masks, strict=True):
                if rng.random() < 0.2:
                    continue
                label = label % 3 + 1 if rng.random() < 1 / 6 else label
                moved = np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1))
                rows.append((SHAPE_CATEGORIES[label - 1], float(np.float32(rng.uniform(0.3, 1))), moved))
            for _ in range(rng.integers(0, 3)):
                ghost = np.zeros(size, bool)
                top, left = rng.integers(0, 60, 2)
                ghost[top : top + 20, left : left + 25] = True
                rows.append((SHAPE_CATEGORIES[rng.integers(3)], float(np.float32(rng.uniform(0.05, 0.6))), ghost))
        rows.sort(key=lambda row: -row[1])
        for rank, (category, score, mask) in enumerate(rows):
            instances.append(instance_row(name, rank, category, score, mask))
            masks[name, rank] = mask.astype(np.uint8)
        images.append(image_row(name, str(path), "ok" if number < 7 else "corrupt", size, len(rows), len(shards)))
        if number % 3 == 2 or number == 7:
            shards.append((images, instances))
            images, instances = [], []
    run = write_run(root / "run", shards, row_group_size=4)
    return DrawnRun(str(run), AnnotatedSet(tuple(annotated), SHAPE_CATEGORIES), root / "photos", masks)


@pytest.fixture
def frames(drawn_run: DrawnRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run's instances and images."""
    from pipeline.tables import load_images, load_instances

    return load_instances(drawn_run.uri), load_images(drawn_run.uri)
