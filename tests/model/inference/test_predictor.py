"""The predictor against the network's own evaluation forward and against torchvision, one image and batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model import transform
from model.inference import openvino_engine
from model.inference.openvino_engine import EngineError
from model.inference.predictor import (
    ENGINES,
    Detections,
    Predictor,
    check_engine,
    check_int8,
    native_dtype,
    native_engine,
    native_precision,
)
from model.network import NonFiniteOutput, build_model
from model.spec import ModelSpec

SPEC = ModelSpec.tiny(num_classes=3, num_keypoints=4, keypoint_head_channels=(16,), score_threshold=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model(SPEC).eval()


def noise_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def keypoints_of(detections: Detections) -> np.ndarray:
    assert detections.keypoints is not None
    return detections.keypoints


@pytest.fixture(params=[pytest.param(each, marks=pytest.mark.long) if each == "openvino" else each for each in ENGINES])
def predictor_with(request, tmp_path):
    """A function that makes a predictor of a network and its spec, once with each engine."""

    def make(network, spec):
        if request.param == "torch":
            return Predictor(network, spec)
        pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
        openvino_engine.convert(network.eval(), tmp_path)
        return Predictor(network, spec, parts=openvino_engine.load(tmp_path, "float32", torch.get_num_threads()))

    return make


def test_equals_the_evaluation_forward(model, predictor_with):
    pictures = [noise_image(100, 130), noise_image(99, 131, seed=1)]
    with torch.no_grad():
        expected = model([as_tensor(picture) for picture in pictures])
    predicted = predictor_with(model, SPEC).predict(pictures)
    for picture, detections, reference in zip(pictures, predicted, expected, strict=True):
        assert len(detections.scores) > 10
        assert np.all(np.diff(detections.scores) <= 0)
        np.testing.assert_allclose(detections.boxes, reference["boxes"], atol=1e-4)
        np.testing.assert_array_equal(detections.labels, reference["labels"])
        np.testing.assert_allclose(detections.scores, reference["scores"], atol=1e-6)
        np.testing.assert_allclose(keypoints_of(detections), reference["keypoints"], atol=1e-3)
        masks = torch.from_numpy(detections.mask_probs)[:, None]
        pasted = paste_masks_in_image(masks, reference["boxes"], picture.shape[:2])
        torch.testing.assert_close(pasted, reference["masks"], atol=1e-4, rtol=0)


def test_arrays_are_as_declared_and_boxes_lie_inside(model):
    detections = Predictor(model, SPEC).predict([noise_image(50, 90)])[0]
    count = len(detections.scores)
    assert detections.boxes.shape == (count, 4) and detections.boxes.dtype == np.float32
    assert detections.labels.shape == (count,) and detections.labels.dtype == np.int64
    assert detections.scores.dtype == np.float32
    assert detections.mask_probs.shape == (count, 28, 28) and detections.mask_probs.dtype == np.float32
    assert keypoints_of(detections).shape == (count, 4, 3)
    assert detections.boxes.min() >= 0 and (detections.boxes <= [90, 50, 90, 50]).all()
    assert 0 <= detections.mask_probs.min() and detections.mask_probs.max() <= 1


def test_the_score_threshold_and_the_most_detections_can_be_set(model):
    unlimited = Predictor(model, SPEC).predict([noise_image(64, 64)])[0]
    limit = float(np.median(unlimited.scores))
    likely = Predictor(model, SPEC, score_threshold=limit).predict([noise_image(64, 64)])[0]
    assert 0 < len(likely.scores) < len(unlimited.scores) and likely.scores.min() > limit
    assert len(Predictor(model, SPEC, max_detections=3).predict([noise_image(64, 64)])[0].scores) == 3
    with pytest.raises(ValueError, match="score_threshold=2"):
        Predictor(model, SPEC, score_threshold=2)


@pytest.mark.parametrize("nms", ["hard", "soft_linear"])
def test_a_class_can_have_a_score_threshold_of_its_own(model, nms):
    spec = SPEC.replace(nms=nms)
    unlimited = Predictor(model, spec, max_detections=10_000).predict([noise_image(64, 64)])[0]
    limits = [float(np.median(unlimited.scores[unlimited.labels == label])) for label in (1, 2)]
    found = Predictor(model, spec, score_threshold=[*limits, 1.0], max_detections=10_000).predict([noise_image(64, 64)])
    is_above = unlimited.scores > np.array([0, *limits, 1.0], np.float32)[unlimited.labels]
    assert 0 < is_above.sum() < len(is_above) and {1, 2} == set(unlimited.labels[is_above])
    np.testing.assert_array_equal(found[0].labels, unlimited.labels[is_above])
    np.testing.assert_array_equal(found[0].scores, unlimited.scores[is_above])
    for wrong in ([0.5, 0.5], [0.5, 0.5, 2.0]):
        with pytest.raises(ValueError, match="allowed is 3 values from 0 to 1"):
            Predictor(model, spec, score_threshold=wrong)


def test_a_smaller_version_gives_boxes_in_pixels_of_the_original(model):
    predictor = Predictor(model, SPEC)
    # Both sizes are resized to 128 x 192.
    small = predictor.predict([noise_image(256, 384)])[0]
    large = predictor.predict([noise_image(256, 384)], [(512, 768)])[0]
    assert len(small.scores) > 10
    np.testing.assert_allclose(large.boxes, 2 * small.boxes, rtol=1e-5)
    np.testing.assert_allclose(keypoints_of(large)[..., :2], 2 * keypoints_of(small)[..., :2], rtol=1e-5)
    np.testing.assert_array_equal(large.scores, small.scores)
    with pytest.raises(ValueError, match="padded size"):
        predictor.predict([noise_image(64, 64)] * 2, [(64, 64), (64, 200)])


def test_no_detection_gives_empty_arrays(model):
    detections = Predictor(model, SPEC, score_threshold=1.0).predict([noise_image(64, 64)])[0]
    assert [detections.boxes.shape, detections.labels.shape, detections.scores.shape] == [(0, 4), (0,), (0,)]
    assert detections.mask_probs.shape == (0, 28, 28) and keypoints_of(detections).shape == (0, 4, 3)


def test_no_detection_gives_empty_masks_of_56_px_too():
    """A mask head of 56 x 56 sees RoIs of 28 x 28: as large as the maps that Winograd convolutions are used for."""
    spec = SPEC.replace(num_keypoints=0, mask_output_size=56, mask_head_channels=(64, 64), score_threshold=1.0)
    detections = Predictor(build_model(spec), spec).predict([noise_image(64, 64)])[0]
    assert detections.mask_probs.shape == (0, 56, 56)


def test_a_strip_of_one_pixel_is_an_image(model):
    assert isinstance(Predictor(model, SPEC).predict([noise_image(1, 3000)])[0], Detections)


def test_batches_share_a_padded_size_and_keep_the_order(model):
    predictor = Predictor(model, SPEC)
    sizes = [(128, 128), (300, 100), (128, 129), (100, 300), (129, 128), (64, 64), (128, 160)]
    assert predictor.batches(sizes, 2) == [[0, 5], [1], [2, 6], [3], [4]]
    assert predictor.batches([], 4) == []
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor.batches(sizes, 0)


def test_padded_size_is_the_size_of_the_tensor(model):
    rng = np.random.default_rng(3)
    resize = transform.ImageTransform(SPEC).eval()
    for height, width in rng.integers(1, 400, (30, 2)).tolist():
        batch, _ = resize([torch.zeros(3, height, width)])
        assert Predictor(model, SPEC).padded_size(height, width) == tuple(batch.tensors.shape[-2:]), (
            height,
            width,
        )


def test_arrays_of_another_type_or_shape_are_refused(model):
    predictor = Predictor(model, SPEC)
    assert predictor.predict([]) == []
    for wrong in (noise_image(8, 8).astype(np.float64), noise_image(8, 8)[..., :1], noise_image(8, 8)[:0]):
        with pytest.raises(ValueError, match="uint8"):
            predictor.predict([wrong])
    with pytest.raises(ValueError, match="padded size"):
        predictor.predict([noise_image(128, 128), noise_image(128, 300)])


def test_outputs_that_are_not_finite_are_refused():
    model = build_model(SPEC)
    with torch.no_grad():
        model.get_parameter("roi_heads.mask_predictor.mask_fcn_logits.bias").fill_(float("nan"))
    with pytest.raises(NonFiniteOutput, match="mask_probs"):
        Predictor(model, SPEC).predict([noise_image(64, 64)])


# Convolutions of 256 channels over maps large enough for all of the predictor's faster convolutions.
LARGE_SIZES = {
    **{"min_size": 192, "max_size": 320, "box_score_thresh": 0.012},
    **{"rpn_post_nms_top_n_test": 200, "box_detections_per_img": 50},
}
LARGE_SPEC = ModelSpec(
    num_classes=90,
    norm="batch",
    image_min_size=192,
    image_max_size=320,
    score_threshold=0.012,
    rpn_post_nms_test=200,
    max_detections=50,
)


def smooth_image(height, width, seed):
    """An image of smooth shapes with noise, so that the maps are not constant."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 6, 8)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def networks():
    """torchvision's network and ours with its weights; smaller class weights keep the scores away from 0 and 1."""
    torch.manual_seed(0)
    make_reference: Any = detection.maskrcnn_resnet50_fpn
    reference = make_reference(weights=None, weights_backbone=None, num_classes=91, **LARGE_SIZES).eval()
    with torch.no_grad():
        reference.roi_heads.box_predictor.cls_score.weight.mul_(0.2)
    ours = build_model(LARGE_SPEC)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def test_exact_mode_finds_torchvisions_detections_one_to_one(networks, predictor_with):
    reference, ours = networks
    predictor = predictor_with(ours, LARGE_SPEC)
    pictures = [smooth_image(192, 256, 0), smooth_image(180, 120, 1)]
    for picture in pictures:
        with torch.inference_mode():
            (expected,) = reference([as_tensor(picture)])
        (detections,) = predictor.predict([picture])
        scores, labels, boxes = detections.scores, detections.labels, detections.boxes
        assert len(scores) == len(expected["scores"]) >= 20
        assert 0.013 < np.median(scores) < 0.9, "scores of 0 and 1 would show nothing"
        unmatched = set(range(len(scores)))
        for box, label, score in zip(*(expected[name].numpy() for name in ("boxes", "labels", "scores"))):
            candidates = [i for i in unmatched if labels[i] == label and np.abs(boxes[i] - box).max() <= 0.05]
            assert candidates, f"torchvision's box {box} of class {label} was not found"
            best = min(candidates, key=lambda i: abs(scores[i] - score))
            assert abs(scores[best] - score) <= 1e-3
            unmatched.remove(best)
        assert not unmatched


def test_detections_do_not_depend_on_the_batchmates(predictor_with):
    torch.manual_seed(1)
    spec = ModelSpec.tiny(num_classes=3, score_threshold=0.0, image_min_size=320, image_max_size=320)
    predictor = predictor_with(build_model(spec), spec)
    pictures = [smooth_image(200, 300, seed) for seed in range(4)]
    alone = [predictor.predict([picture])[0] for picture in pictures]
    after_a_black_image = predictor.predict([np.zeros_like(pictures[0]), *pictures])[1:]
    in_reverse = predictor.predict(pictures[::-1])[::-1]
    for together in (after_a_black_image, in_reverse):
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(batched.labels, single.labels)
            np.testing.assert_allclose(batched.boxes, single.boxes, atol=1e-3)
            np.testing.assert_allclose(batched.scores, single.scores, atol=1e-5)
            np.testing.assert_allclose(batched.mask_probs, single.mask_probs, atol=1e-4)


def test_fast_mode_is_bfloat16_or_says_why_it_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64", "neon": True})
    dtype, reason = native_dtype("fast", "cpu")
    assert dtype == torch.float32 and reason is not None and "bfloat16" in reason
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert native_dtype("fast", "cpu") == (torch.bfloat16, None)
    assert native_dtype("exact", "cpu") == (torch.float32, None)
    with pytest.raises(ValueError, match="mode='quick'"):
        native_dtype("quick", "cpu")


def test_int8_is_openvinos_and_says_where_the_processor_has_no_vnni(monkeypatch):
    for features, has_note in (
        ({"architecture": "x86_64"}, True),
        ({"architecture": "x86_64", "avx_vnni": True}, False),
        ({"architecture": "x86_64", "avx512_vnni": True}, False),
        ({"architecture": "aarch64"}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        precision, note = native_precision("int8", "cpu")
        assert precision == "int8" and (note is not None) == has_note
        assert native_precision("exact", "cpu") == ("float32", None)
    assert native_engine("int8", "cpu") == "openvino"
    with pytest.raises(EngineError, match="torch does not compute in int8; allowed is openvino"):
        check_engine("torch", "int8", "cpu")
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: True)
    check_int8({"maps.xml": b""})
    with pytest.raises(EngineError, match="mode int8: the checkpoint was not quantised"):
        check_int8({})
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: False)
    with pytest.raises(EngineError, match="mode int8: OpenVINO is not installed here"):
        check_int8({"maps.xml": b""})


def test_the_engine_is_the_faster_one(monkeypatch):
    """OpenVINO in float32 on a CPU with AVX-512, where it is installed; torch everywhere else."""
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: True)
    for has_avx512, engine in ((True, "openvino"), (False, "torch")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_avx512=has_avx512: {"avx512_f": has_avx512})
        assert native_engine("float32", "cpu") == engine
        assert native_engine("bfloat16", "cpu") == native_engine("float32", "cuda") == "torch"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: False)
    assert native_engine("float32", "cpu") == "torch"


@pytest.mark.long
def test_fast_mode_finds_nearly_the_same_scores(networks):
    _, ours = networks
    picture = smooth_image(320, 416, 0)
    (exact,) = Predictor(ours, LARGE_SPEC).predict([picture])
    (fast,) = Predictor(ours, LARGE_SPEC, dtype=torch.bfloat16).predict([picture])
    assert fast.boxes.dtype == fast.scores.dtype == fast.mask_probs.dtype == np.float32
    assert not np.array_equal(fast.scores, exact.scores)
    np.testing.assert_allclose(np.sort(fast.scores)[-20:], np.sort(exact.scores)[-20:], rtol=0.1)
