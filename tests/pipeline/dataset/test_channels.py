"""Aligned files give further channels that stay in register with their photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.photos import UnusablePhoto
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage.files import Location
from tests.pipeline.images.tiff_files import random_bands


def annotated_image(path: Path, height: int = 11, width: int = 14) -> AnnotatedImage:
    return AnnotatedImage(1, path.name, Location(str(path)), height, width)


def test_depth_of_an_aligned_file_follows_the_photos_channels(tmp_path: Path) -> None:
    rgb, depth = random_bands("u1", 3), random_bands("u2", 1)
    depth = (depth.astype(np.uint16) * 300).astype(np.uint16)
    (tmp_path / "depth").mkdir()
    (tmp_path / "rgb").mkdir()
    Image.fromarray(rgb).save(tmp_path / "rgb/a.png")
    Image.fromarray(depth[..., 0]).save(tmp_path / "depth/a.png")
    annotated = AnnotatedSet((annotated_image(tmp_path / "rgb/a.png"),), SHAPE_CATEGORIES)
    deep = with_extra_channels(annotated, "{folder}/../depth/{stem}.png")
    picture = SampleSet(deep, in_channels=4)[(0, 0)].image
    assert picture.dtype == torch.float32 and picture.shape == (4, 11, 14)
    assert torch.allclose(picture[:3], torch.from_numpy(rgb).permute(2, 0, 1) / 255)
    assert torch.allclose(picture[3], torch.from_numpy(depth[..., 0].astype(np.float32)) / 65535)
    # A written set has its extra files, too.
    write_coco(deep, str(tmp_path / "out/set.json"))
    again = load_annotations(str(tmp_path / "out/set.json"))
    assert torch.equal(SampleSet(again, in_channels=4)[(0, 0)].image, picture)
    with pytest.raises(UnusablePhoto, match="it has 3 bands; 4 are wanted"):
        SampleSet(deep, in_channels=5)[(0, 0)]
    with pytest.raises(UnusablePhoto, match="extra files alone have 1 bands; 1 are wanted"):
        SampleSet(deep, in_channels=1)[(0, 0)]
    (tmp_path / "depth/a.png").unlink()
    with pytest.raises(UnusablePhoto, match=r"depth/a\.png: there is no such file"):
        SampleSet(deep, in_channels=4)[(0, 0)]


def test_extra_channels_are_transformed_with_the_photo(tmp_path: Path) -> None:
    rgb = random_bands("u1", 3, 12, 16)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "a_depth.png")
    annotated = AnnotatedSet((annotated_image(tmp_path / "a.png", 12, 16),), SHAPE_CATEGORIES)
    deep = with_extra_channels(annotated, "{folder}/{stem}_depth.png")
    transforms = build_transforms(
        Augmentation(
            horizontal_flip=0.5, rotation=0.5, rotation_degrees=40, resize="large_scale_jitter", resize_size=(20, 20)
        )
    )
    samples = SampleSet(deep, transforms, in_channels=4)
    for epoch in range(10):
        picture = samples[(epoch, 0)].image
        assert torch.equal(picture[0], picture[3])  # the depth is the red channel here


@pytest.mark.parametrize("pattern", ["depth.png", "{folder}/{name}.png", "{stem}{", "{}"])
def test_patterns_that_do_not_name_a_file_are_refused(pattern: str) -> None:
    annotated = AnnotatedSet((annotated_image(Path("a.png")),), SHAPE_CATEGORIES)
    with pytest.raises(AnnotationError, match="the pattern"):
        with_extra_channels(annotated, pattern)
