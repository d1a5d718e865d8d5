"""Detections of batches: halved when the network cannot take them, exact, fast, as run lengths and in slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CheckpointError
from model.inference.mask_rle import Paste
from model.inference.openvino_engine import EngineError
from model.inference.predictor import Detections
from pipeline.bulk.encode import encode_instances
from pipeline.bulk.predict import ImagePredictor, engine_of_few
from pipeline.images.slices import SlicedDetections
from pipeline.masks.rle import decode_rle
from pipeline.run_spec import SegmentSpec, Slicing


def predictor_of(
    checkpoint: Path, sha256: str | None = None, precision: str = "float32", engine: str = "torch"
) -> ImagePredictor:
    return ImagePredictor(
        str(checkpoint),
        sha256=sha256 or load_checkpoint(checkpoint).sha256,
        segment=SegmentSpec(score_threshold=0.05, max_detections=5, precision=precision, engine=engine),
        batch_size=8,
        device="cpu",
    )


def whole_images(results: list[Detections | SlicedDetections | str]) -> list[Detections]:
    """The results, none of which is a failure or of an image that was cut."""
    detections = [result for result in results if isinstance(result, Detections)]
    assert len(detections) == len(results)
    return detections


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tiny_checkpoint)
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(7)]
    expected = whole_images(predictor.predict(images))
    predict, batch_lengths = predictor.predictor.predict, []

    def small_gpu(batch, batch_sizes, paste):
        batch_lengths.append(len(batch))
        if len(batch) > 2 or any(image is images[3] for image in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(batch, batch_sizes, paste)

    monkeypatch.setattr(predictor.predictor, "predict", small_gpu)
    results = predictor.predict(images)
    assert batch_lengths[0] == 7 and max(length for length in batch_lengths[1:] if length <= 2) == 2
    assert results.pop(3) == "OutOfMemoryError: CUDA out of memory", "the one that never fits has a row of its own"
    for fitting, exact in zip(whole_images(results), expected[:3] + expected[4:], strict=True):
        assert np.allclose(fitting.boxes, exact.boxes, atol=1e-3)


def test_other_weights_than_promised_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the run was begun with 000000000000\.\.\."):
        predictor_of(tiny_checkpoint, sha256="0" * 64)


def test_fast_mode_finds_nearly_the_same(tiny_checkpoint: Path) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(2)]
    exact_mode, fast_mode = predictor_of(tiny_checkpoint), predictor_of(tiny_checkpoint, precision="bfloat16")
    assert fast_mode.predictor.model.compute_dtype == torch.bfloat16
    exact_results, fast_results = (whole_images(predictor.predict(images)) for predictor in (exact_mode, fast_mode))
    for exact, fast in zip(exact_results, fast_results, strict=True):
        assert len(fast.scores) == len(exact.scores) > 0
        np.testing.assert_allclose(fast.scores, exact.scores, atol=0.05)


def test_a_network_is_converted_once_for_a_machine_and_again_where_the_conversion_is_torn(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.bulk.predict.native_engine", lambda precision, device: "openvino")
    checkpoint, images = (
        load_checkpoint(tiny_checkpoint),
        [np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)],
    )
    assert engine_of_few(checkpoint, "float32", "cpu") == "torch", "nothing is converted yet"
    (expected,) = whole_images(predictor_of(tiny_checkpoint).predict(images))
    (found,) = whole_images(predictor_of(tiny_checkpoint, engine="openvino").predict(images))
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert engine_of_few(checkpoint, "float32", "cpu") == "openvino"
    (weights,) = tmp_path.glob("maskfleet/*/maps.bin")
    written = weights.stat()
    predictor_of(tiny_checkpoint, engine="openvino")
    assert weights.stat() == written, "converted once"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    (again,) = whole_images(predictor_of(tiny_checkpoint, engine="openvino").predict(images))
    assert weights.read_bytes() == whole
    np.testing.assert_array_equal(again.boxes, found.boxes)


def test_an_engine_that_is_not_here_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inference.openvino_engine.is_installed", lambda: False)
    with pytest.raises(
        EngineError, match="OpenVINO is not installed on this machine; allowed here is the engine torch"
    ):
        predictor_of(tiny_checkpoint, engine="openvino")


def test_masks_that_leave_the_device_as_run_lengths_are_the_same_masks(tiny_checkpoint: Path) -> None:
    """As a GPU does it, here on a CPU."""
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(2)]
    predictor = predictor_of(tiny_checkpoint)
    as_probabilities = whole_images(predictor.predict(images))
    predictor.paste = Paste(0.5)
    as_runs = whole_images(predictor.predict(images))
    for pair in zip(as_probabilities, as_runs, strict=True):
        assert pair[1].runs is not None and pair[1].mask_probs.shape == (len(pair[1].scores), 0, 0)
        expected, columns = (encode_instances(detections, predictor.categories, (64, 96), 0.5) for detections in pair)
        assert len(expected["score"]) > 0 and columns == expected


def test_slices_are_predicted_as_images_of_their_own(tiny_checkpoint: Path) -> None:
    predictor = predictor_of(tiny_checkpoint)
    predictor.slicing = Slicing(96, 32, 0.5)
    image = np.random.default_rng(0).integers(0, 256, (160, 224, 3), np.uint8)
    small = image[:96, :96].copy()
    sliced, whole = predictor.predict([image, small])
    assert isinstance(sliced, SlicedDetections) and len(sliced.slices) == 6 and isinstance(whole, Detections)
    np.testing.assert_allclose(sliced.detections[0].scores, whole.scores, atol=1e-5)
    np.testing.assert_allclose(sliced.detections[0].boxes, whole.boxes, atol=1e-3)
    columns = encode_instances(sliced, predictor.categories, (160, 224), 0.5, 0.5)
    assert max(columns["x2"]) > 128 and max(columns["y2"]) > 96 and len(columns["score"]) > len(whole.scores)
    assert decode_rle(columns["rle_counts"][0], 160, 224).sum() == columns["area_px"][0]
