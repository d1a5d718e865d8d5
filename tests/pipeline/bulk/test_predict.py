"""Detections of batches, of our network and of users' predictors: halved where they fail, exact, fast, in slices."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CheckpointError
from model.inference.predictor import Detections
from pipeline.bulk.encode import encode_instances
from pipeline.bulk.predict import ImagePredictor, Prediction, UserPredictor
from pipeline.images.slices import MaskedInstances, SlicedDetections
from pipeline.masks.rle import decode_rle, encode_mask
from pipeline.predictors.contract import RunFault
from pipeline.predictors.source import PredictorError
from pipeline.run_spec import SegmentSpec, Slicing
from tests.pipeline.predictors.user_code.faulty_marks import left_half, mark_of
from tests.pipeline.predictors.written import FAULTY, USER_CODE, source_of


def predictor_of(checkpoint: Path, sha256: str | None = None, precision: str = "float32") -> ImagePredictor:
    return ImagePredictor(
        str(checkpoint),
        sha256=sha256 or load_checkpoint(checkpoint).sha256,
        segment=SegmentSpec(score_threshold=0.05, max_detections=5, precision=precision),
        batch_size=8,
        device="cpu",
    )


def whole_images(results: list[Prediction]) -> list[Detections]:
    """The results, none of which is a failure or of an image that was cut."""
    detections = [result for result in results if isinstance(result, Detections)]
    assert len(detections) == len(results)
    return detections


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tiny_checkpoint)
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(7)]
    expected = whole_images(predictor.predict(images))
    predict, batch_lengths = predictor.predictor.predict, []

    def small_gpu(batch, batch_sizes, runs_at):
        batch_lengths.append(len(batch))
        if len(batch) > 2 or any(image is images[3] for image in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(batch, batch_sizes, runs_at)

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


def test_masks_that_leave_the_device_as_run_lengths_are_the_same_masks(tiny_checkpoint: Path) -> None:
    """As a GPU does it, here on a CPU."""
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(2)]
    predictor = predictor_of(tiny_checkpoint)
    as_probabilities = whole_images(predictor.predict(images))
    predictor.runs_at = 0.5
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


@pytest.fixture
def import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own, and the import path as it was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def user_predictor(
    form: str = "masks", sha256: str | None = None, timeout_s: float = 60, slicing: Slicing | None = None
) -> UserPredictor:
    source = source_of(USER_CODE, FAULTY, form=form)
    return UserPredictor(
        FAULTY,
        sha256=sha256 or source.open().model.sha256,
        segment=SegmentSpec(score_threshold=0.05, max_detections=5, slice=slicing),
        batch_size=4,
        source=source,
        timeout_s=timeout_s,
        device="cpu",
    )


def seven_images(fault: str | None = None) -> list[np.ndarray]:
    """Images of two sizes; the sixth one has the mark of a fault."""
    images = [np.full((40, 60 + 10 * (index % 2), 3), index, np.uint8) for index in range(7)]
    if fault is not None:
        images[5][0, 0] = mark_of(fault)
    return images


@pytest.mark.usefixtures("import_path")
@pytest.mark.parametrize("form", ["masks", "rles", "tensors", "mask_probs"])
def test_a_predictor_of_the_users_own_gives_the_columns_of_the_table(form: str) -> None:
    predictor, images = user_predictor(form), seven_images()
    results = predictor.predict(images)
    assert [image[0, 0, 0] for image in images] == list(range(7)), "the predictor changes what it is given"
    assert predictor.segmenter.sizes == [4, 3]  # type: ignore[attr-defined]
    for image, result in zip(images, results, strict=True):
        assert isinstance(result, MaskedInstances)
        height, width = image.shape[:2]
        columns = encode_instances(result, predictor.categories, (height, width), 0.5)
        assert (columns["category_id"], columns["category"], columns["instance"]) == ([5], ["dog"], [0])
        assert columns["score"] == pytest.approx([0.9], abs=2e-3)
        mask = left_half(height, width)
        if form != "mask_probs":  # whose outermost pixels interpolation takes
            assert columns["rle_counts"] == [encode_mask(mask)] and columns["area_px"] == [mask.sum()]
        assert [columns[name] for name in ("x1", "y1", "x2", "y2")] == [[0], [0], [width / 2], [height]]


@pytest.mark.usefixtures("import_path")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "KeyError: 'no such thing'"),
        ("exits", "SystemExit: bye"),
        ("no memory", "OutOfMemoryError: CUDA out of memory"),
        ("another type", "it gave a dict for an image; maskfleet.Instances is wanted"),
        ("one too few", "it gave a list of 0 for 1 images; a list of as many is wanted"),
        ("nan", "scores has a value that is not finite"),
        ("label", "labels has a value of 3; 1..2 is wanted"),
        ("mask size", "masks has the shape [2, 41, 70]; [2, 40, 70] is wanted"),
    ],
)
def test_a_fault_of_the_users_predictor_costs_one_image(fault: str, reason: str) -> None:
    predictor = user_predictor()
    expected, results = predictor.predict(seven_images()), predictor.predict(seven_images(fault))
    assert results[5] == reason
    for index in (0, 1, 2, 3, 4, 6):
        result, other = results[index], expected[index]
        assert isinstance(result, MaskedInstances) and isinstance(other, MaskedInstances)
        assert result.counts == other.counts


@pytest.mark.usefixtures("import_path")
def test_a_call_that_takes_too_long_gives_the_process_up_and_one_in_time_does_not() -> None:
    predictor, reasons, came_back = user_predictor(timeout_s=0.2), list[str](), threading.Event()
    gave_up = threading.Event()

    def give_up(reason: str) -> None:
        reasons.append(reason)
        gave_up.set()

    predictor.give_up = give_up
    predictor.predict(seven_images())
    assert not gave_up.wait(0.5)
    predict = predictor.segmenter.predict

    def slow_predict(images):
        assert gave_up.wait(60)
        came_back.set()
        return predict(images)

    predictor.segmenter.predict = slow_predict  # type: ignore[method-assign]
    predictor.predict(seven_images()[:1])
    assert reasons == ["it took longer than 0.2 s"] and came_back.is_set()


@pytest.mark.usefixtures("import_path")
def test_a_gpu_that_fails_gives_the_process_up_and_a_fault_of_the_run_ends_it() -> None:
    predictor, reasons = user_predictor(), list[str]()
    predictor.give_up = reasons.append
    with pytest.raises(RunFault, match="the service does not answer"):
        predictor.predict(seven_images("the run's"))

    def broken_predict(images):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    predictor.segmenter.predict = broken_predict  # type: ignore[method-assign]
    predictor.predict(seven_images()[:1])
    assert reasons == ["the GPU failed: AcceleratorError: CUDA error: device-side assert triggered"]


@pytest.mark.usefixtures("import_path")
def test_other_code_than_promised_is_refused() -> None:
    with pytest.raises(PredictorError, match="faulty:Faulty is another one here than where the run was begun"):
        user_predictor(sha256="0" * 64)


@pytest.mark.usefixtures("import_path")
def test_slices_are_images_to_the_users_predictor() -> None:
    predictor = user_predictor(slicing=Slicing(96, 32, 0.5))
    image = np.zeros((160, 224, 3), np.uint8)
    sliced, whole = predictor.predict([image, image[:64, :64]])
    assert isinstance(sliced, SlicedDetections) and len(sliced.slices) == 6 and isinstance(whole, MaskedInstances)
    columns = encode_instances(sliced, predictor.categories, (160, 224), 0.5, 1.0)
    found = np.zeros((160, 224), bool)
    for counts in columns["rle_counts"]:
        found |= decode_rle(counts, 160, 224).astype(bool)
    expected = np.zeros((160, 224), bool)
    for window in sliced.slices:
        expected[window.top : window.bottom, window.left : window.left + 48] = True
    np.testing.assert_array_equal(found, expected)
    image[64, 128] = mark_of("raises")  # the first pixel of the last slice
    (reason,) = predictor.predict([image])
    assert reason == "slice at row 64, column 128: KeyError: 'no such thing'"
