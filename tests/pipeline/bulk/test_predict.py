"""Detections of batches, of our network, of users' predictors and of SAM behind them; failures, modes, slices."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CheckpointError
from model.inference.predictor import Detections
from model.inference.sam import SamRefiner
from model.network import NonFiniteOutput
from model.weights.sam import find_sam
from pipeline.bulk.encode import encode_instances
from pipeline.bulk.predict import ImagePredictor, Prediction, RefiningPredictor, UserPredictor, engine_of_few
from pipeline.images.slices import MaskedInstances, SlicedDetections
from pipeline.masks.rle import decode_rle, encode_mask, runs_to_counts
from pipeline.predictors.contract import RunFault
from pipeline.predictors.source import PredictorError
from pipeline.run_spec import RefineSpec, SegmentSpec, Slicing
from tests.pipeline.predictors.user_code.faulty_marks import left_half, mark_of
from tests.pipeline.predictors.written import FAULTY, USER_CODE, source_of


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


@pytest.mark.long
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
    with pytest.raises(PredictorError, match=r"segment\.engine: openvino is not installed on this machine"):
        predictor_of(tiny_checkpoint, engine="openvino")
    with pytest.raises(PredictorError, match="'warp' is not allowed; allowed is torch or openvino"):
        predictor_of(tiny_checkpoint, engine="warp")


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


def refining_predictor(
    inner: Any, model: Path, name: str, sha256: str, segment: SegmentSpec, sam_sha256: str | None = None
) -> RefiningPredictor:
    """SAM behind a predictor; `sam_sha256` is the hash that the run was begun with, None that of the folder."""
    refine = RefineSpec(sha256=sam_sha256 or find_sam(str(model)).sha256)
    return RefiningPredictor(
        name,
        inner=inner,
        model=str(model),
        boxes_at_once=3,
        sha256=sha256,
        segment=replace(segment, refine=refine),
        batch_size=4,
        device="cpu",
    )


def refined_checkpoint(checkpoint: Path, model: Path, sam_sha256: str | None = None, **more: Any) -> RefiningPredictor:
    segment = SegmentSpec(score_threshold=0.05, max_detections=5, **more)
    sha256 = load_checkpoint(checkpoint).sha256
    return refining_predictor(ImagePredictor, model, str(checkpoint), sha256, segment, sam_sha256)


def random_images() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(3)]


def test_sam_makes_the_masks_anew_and_leaves_the_rest(tiny_checkpoint: Path, small_sam: Path) -> None:
    predictor, images = refined_checkpoint(tiny_checkpoint, small_sam), random_images()
    for image, result, plain in zip(images, predictor.predict(images), predictor.inner.predict(images), strict=True):
        assert isinstance(result, MaskedInstances) and isinstance(plain, Detections) and len(plain.scores) == 5
        columns, before = (encode_instances(each, predictor.categories, (64, 96), 0.5) for each in (result, plain))
        masks = [decode_rle(counts, 64, 96) for counts in columns["rle_counts"]]
        lengths, numbers = SamRefiner(find_sam(str(small_sam)), device="cpu", batch_size=32).refine(image, plain.boxes)
        assert columns["rle_counts"] == runs_to_counts(lengths, numbers)[0]
        assert columns["area_px"] == [mask.sum() for mask in masks] and any(mask.any() for mask in masks)
        assert columns["rle_counts"] != before["rle_counts"]
        for name in ("instance", "category_id", "category", "score", "x1", "y1", "x2", "y2", "image_height"):
            assert columns[name] == before[name]


def test_an_image_without_instances_is_none_for_sam(tiny_checkpoint: Path, small_sam: Path) -> None:
    predictor = refined_checkpoint(tiny_checkpoint, small_sam)
    predictor.inner.predictor.model.roi_heads.score_thresh = 1.0  # type: ignore[attr-defined]
    predictor.refiner.network = None
    (result,) = predictor.predict(random_images()[:1])
    assert isinstance(result, MaskedInstances) and not len(result.scores) and result.boxes.shape == (0, 4)
    assert encode_instances(result, predictor.categories, (64, 96), 0.5)["score"] == []


@pytest.mark.usefixtures("import_path")
def test_sam_refines_the_boxes_of_a_predictor_of_the_users_own(small_sam: Path) -> None:
    source = source_of(USER_CODE, FAULTY, form="masks")
    segment = SegmentSpec(score_threshold=0.05, max_detections=5)
    inner = partial(UserPredictor, source=source, timeout_s=60)
    predictor = refining_predictor(inner, small_sam, FAULTY, source.open().model.sha256, segment)
    reasons = list[str]()
    predictor.give_up = reasons.append
    results = predictor.predict(seven_images("raises"))
    assert results[5] == "KeyError: 'no such thing'"
    result = results[0]
    assert isinstance(result, MaskedInstances) and result.boxes.tolist() == [[0, 0, 30, 40]]
    assert result.counts != [encode_mask(left_half(40, 60))] and len(result.counts) == 1
    predictor.inner.segmenter.predict = lost_gpu  # type: ignore[attr-defined]
    predictor.predict(seven_images()[:1])
    assert reasons == ["the GPU failed: AcceleratorError: CUDA error: an illegal memory access"]


@pytest.mark.usefixtures("import_path")
def test_a_box_without_a_pixel_has_an_empty_mask_and_sam_is_not_asked(small_sam: Path) -> None:
    source = source_of(USER_CODE, FAULTY, form="masks")
    inner = partial(UserPredictor, source=source, timeout_s=60)
    predictor = refining_predictor(inner, small_sam, FAULTY, source.open().model.sha256, SegmentSpec(score_threshold=0))
    image = seven_images()[0]

    def found(images: Any, sizes: Any, *, are_slices: bool = False) -> list[MaskedInstances]:
        boxes = np.array([[5, 5, 5, 9], [3, 4, 30, 39], [0, 0, 0, 0]], np.float32)
        labels, scores = np.ones(3, np.int64), np.full(3, 0.5, np.float32)
        return [MaskedInstances(labels, scores, boxes, ["", "", ""], np.zeros(3, np.int64), None)]

    predictor.inner.predict_whole = found  # type: ignore[method-assign]
    (result,) = predictor.predict([image])
    assert isinstance(result, MaskedInstances) and len(result.counts) == 3
    empty = encode_mask(np.zeros(image.shape[:2], bool))
    assert result.counts[0] == result.counts[2] == empty != result.counts[1]
    assert [bool(area) for area in result.areas] == [False, True, False]


def lost_gpu(images):
    raise torch.AcceleratorError("CUDA error: an illegal memory access")


def test_slices_are_images_to_sam(tiny_checkpoint: Path, small_sam: Path) -> None:
    predictor = refined_checkpoint(tiny_checkpoint, small_sam, slice=Slicing(96, 32, 0.5))
    image = np.random.default_rng(0).integers(0, 256, (160, 224, 3), np.uint8)
    sliced, small = predictor.predict([image, image[:96, :96].copy()])
    assert isinstance(sliced, SlicedDetections) and len(sliced.slices) == 6 and isinstance(small, MaskedInstances)
    first = sliced.detections[0]
    assert isinstance(first, MaskedInstances) and first.counts == small.counts
    columns = encode_instances(sliced, predictor.categories, (160, 224), 0.5, 0.5)
    assert decode_rle(columns["rle_counts"][0], 160, 224).sum() == columns["area_px"][0]
    assert max(columns["x2"]) > 128 and max(columns["y2"]) > 96


def test_what_sam_fails_on_costs_one_image(tiny_checkpoint: Path, small_sam: Path) -> None:
    predictor, images = refined_checkpoint(tiny_checkpoint, small_sam), random_images()
    expected, refine = predictor.predict(images), predictor.refiner.refine

    def failing(image: np.ndarray, boxes: np.ndarray) -> Any:
        if image is images[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if image is images[2]:
            raise NonFiniteOutput("SAM gave masks that are not finite")
        return refine(image, boxes)

    predictor.refiner.refine = failing  # type: ignore[method-assign]
    first, *reasons = predictor.predict(images)
    assert isinstance(first, MaskedInstances) and isinstance(expected[0], MaskedInstances)
    assert first.counts == expected[0].counts
    assert reasons == [
        "SAM: OutOfMemoryError: CUDA out of memory",
        "SAM: NonFiniteOutput: SAM gave masks that are not finite",
    ]


def test_an_image_too_narrow_for_sam_and_a_gpu_that_fails_under_it(tiny_checkpoint: Path, small_sam: Path) -> None:
    predictor, reasons = refined_checkpoint(tiny_checkpoint, small_sam), list[str]()
    predictor.give_up = reasons.append
    (result,) = predictor.predict([np.random.default_rng(0).integers(0, 256, (1, 400, 3), np.uint8)])
    assert isinstance(result, str) and result.startswith("SAM: ") and not reasons

    def lost(**inputs: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    predictor.refiner.network.forward = lost
    predictor.predict(random_images()[:1])
    assert reasons == ["the GPU failed: AcceleratorError: CUDA error: an illegal memory access"]


def test_another_sam_than_promised_is_refused(tiny_checkpoint: Path, small_sam: Path) -> None:
    with pytest.raises(PredictorError, match=r"segment\.refine\.model: the weights of .* here, the run was begun"):
        refined_checkpoint(tiny_checkpoint, small_sam, sam_sha256="0" * 64)
    with pytest.raises(PredictorError, match=r"segment\.refine\.model: '/nowhere' is not a folder"):
        refined_checkpoint(tiny_checkpoint, Path("/nowhere"), sam_sha256="0" * 64)
