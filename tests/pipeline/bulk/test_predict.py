"""What becomes of a batch that the network cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CheckpointError
from model.inference.mask_rle import Paste
from pipeline.bulk.encode import encode_instances
from pipeline.bulk.predict import ImagePredictor
from pipeline.masks.rle_kernel import torch_resize_is_fused


def predictor_of(checkpoint: Path, sha256: str | None = None, precision: str = "float32") -> ImagePredictor:
    return ImagePredictor(
        str(checkpoint),
        sha256=sha256 or load_checkpoint(checkpoint).sha256,
        score_threshold=0.05,
        max_detections=5,
        batch_size=8,
        precision=precision,
        device="cpu",
    )


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tiny_checkpoint)
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(7)]
    whole = predictor.predict(images)
    predict, sizes = predictor.predictor.predict, []

    def small_gpu(batch, batch_sizes, paste):
        sizes.append(len(batch))
        if len(batch) > 2 or any(image is images[3] for image in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(batch, batch_sizes, paste)

    monkeypatch.setattr(predictor.predictor, "predict", small_gpu)
    found = predictor.predict(images)
    assert sizes[0] == 7 and max(size for size in sizes[1:] if size <= 2) == 2
    assert found[3] == "OutOfMemoryError: CUDA out of memory", "the one that never fits has a row of its own"
    for place in (0, 1, 2, 4, 5, 6):
        assert np.allclose(found[place].boxes, whole[place].boxes, atol=1e-3)


def test_other_weights_than_promised_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the run was begun with 000000000000\.\.\."):
        predictor_of(tiny_checkpoint, sha256="0" * 64)


def test_fast_mode_finds_nearly_the_same(tiny_checkpoint: Path) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(2)]
    fast = predictor_of(tiny_checkpoint, precision="bfloat16")
    assert fast.predictor.model.compute_dtype == torch.bfloat16
    for exact, found in zip(predictor_of(tiny_checkpoint).predict(images), fast.predict(images)):
        assert len(found.scores) == len(exact.scores) > 0
        np.testing.assert_allclose(found.scores, exact.scores, atol=0.05)


def test_masks_that_leave_the_device_as_run_lengths_are_the_same_masks(tiny_checkpoint: Path) -> None:
    """As a GPU does it, here on a CPU."""
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(2)]
    predictor = predictor_of(tiny_checkpoint)
    plain = predictor.predict(images)
    predictor.paste = Paste(0.5, torch_resize_is_fused())
    for want, found in zip(plain, predictor.predict(images), strict=True):
        assert found.runs is not None and found.mask_probs.shape == (len(found.scores), 0, 0)
        columns = [encode_instances(one, predictor.categories, (64, 96), 0.5) for one in (want, found)]
        assert len(columns[0]["score"]) > 0 and columns[0] == columns[1]
