"""The predictor against the network's own evaluation forward, which is torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model import transform
from model.inference.predictor import Detections, NonFiniteOutput, Predictor
from model.network import build_model
from model.spec import ModelSpec

SPEC = ModelSpec.tiny(num_classes=3, num_keypoints=4, keypoint_head_channels=(16,), score_threshold=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model(SPEC).eval()


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def test_equals_the_evaluation_forward(model):
    pictures = [image(100, 130), image(99, 131, seed=1)]
    with torch.no_grad():
        expected = model([as_tensor(picture) for picture in pictures])
    for picture, found, want in zip(pictures, Predictor(model, SPEC).predict(pictures), expected, strict=True):
        assert len(found.scores) > 10
        assert np.all(np.diff(found.scores) <= 0)
        np.testing.assert_allclose(found.boxes, want["boxes"], atol=1e-4)
        np.testing.assert_array_equal(found.labels, want["labels"])
        np.testing.assert_allclose(found.scores, want["scores"], atol=1e-6)
        np.testing.assert_allclose(found.keypoints, want["keypoints"], atol=1e-3)
        pasted = paste_masks_in_image(torch.from_numpy(found.mask_probs)[:, None], want["boxes"], picture.shape[:2])
        torch.testing.assert_close(pasted, want["masks"], atol=1e-4, rtol=0)


def test_arrays_are_as_declared_and_boxes_lie_inside(model):
    found = Predictor(model, SPEC).predict([image(50, 90)])[0]
    count = len(found.scores)
    assert found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
    assert found.labels.shape == (count,) and found.labels.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert found.mask_probs.shape == (count, 28, 28) and found.mask_probs.dtype == np.float32
    assert found.keypoints.shape == (count, 4, 3)
    assert found.boxes.min() >= 0 and (found.boxes <= [90, 50, 90, 50]).all()
    assert 0 <= found.mask_probs.min() and found.mask_probs.max() <= 1


def test_thresholds(model):
    everything = Predictor(model, SPEC).predict([image(64, 64)])[0]
    limit = float(np.median(everything.scores))
    some = Predictor(model, SPEC, score_threshold=limit).predict([image(64, 64)])[0]
    assert 0 < len(some.scores) < len(everything.scores) and some.scores.min() > limit
    assert len(Predictor(model, SPEC, max_detections=3).predict([image(64, 64)])[0].scores) == 3
    with pytest.raises(ValueError, match="score_threshold=2"):
        Predictor(model, SPEC, score_threshold=2)


def test_a_smaller_version_gives_boxes_in_pixels_of_the_original(model):
    predictor = Predictor(model, SPEC)
    # Both sizes are resized to 128 x 192.
    small = predictor.predict([image(256, 384)])[0]
    large = predictor.predict([image(256, 384)], [(512, 768)])[0]
    assert len(small.scores) > 10
    np.testing.assert_allclose(large.boxes, 2 * small.boxes, rtol=1e-5)
    np.testing.assert_allclose(large.keypoints[..., :2], 2 * small.keypoints[..., :2], rtol=1e-5)
    np.testing.assert_array_equal(large.scores, small.scores)
    with pytest.raises(ValueError, match="padded size"):
        predictor.predict([image(64, 64)] * 2, [(64, 64), (64, 200)])


def test_nothing_found_gives_empty_arrays(model):
    found = Predictor(model, SPEC, score_threshold=1.0).predict([image(64, 64)])[0]
    assert [found.boxes.shape, found.labels.shape, found.scores.shape] == [(0, 4), (0,), (0,)]
    assert found.mask_probs.shape == (0, 28, 28) and found.keypoints.shape == (0, 4, 3)


def test_nothing_found_has_no_large_masks_either():
    """A mask head of 56 x 56 sees RoIs of 28 x 28: as large as the maps that are convolved in Winograd's way."""
    spec = SPEC.replace(num_keypoints=0, mask_output_size=56, mask_head_channels=(64, 64), score_threshold=1.0)
    found = Predictor(build_model(spec), spec).predict([image(64, 64)])[0]
    assert found.mask_probs.shape == (0, 56, 56)


def test_a_strip_of_one_pixel_is_an_image(model):
    assert isinstance(Predictor(model, SPEC).predict([image(1, 3000)])[0], Detections)


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


def test_wrong_input_is_refused(model):
    predictor = Predictor(model, SPEC)
    assert predictor.predict([]) == []
    for wrong in (image(8, 8).astype(np.float64), image(8, 8)[..., :1], image(8, 8)[:0]):
        with pytest.raises(ValueError, match="uint8"):
            predictor.predict([wrong])
    with pytest.raises(ValueError, match="padded size"):
        predictor.predict([image(128, 128), image(128, 300)])


def test_a_network_gone_bad_is_found():
    model = build_model(SPEC)
    with torch.no_grad():
        model.roi_heads.mask_predictor.mask_fcn_logits.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput, match="mask_probs"):
        Predictor(model, SPEC).predict([image(64, 64)])
