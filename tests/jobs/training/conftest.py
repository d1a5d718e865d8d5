"""Drawn shapes that the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and two validation images of 64 x 80 px, annotated as COCO; no test may change them."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=10, num_val=2, num_unlabelled=0, image_size=(64, 80), max_shapes=3)
    return folder
