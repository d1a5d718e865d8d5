"""Exact mode finds torchvision's detections one to one; what an image shows does not depend on its batchmates."""

import numpy as np
import pytest
import torch
from torchvision.models import detection

from model.inference.predictor import Predictor, native_dtype
from model.network import build_model
from model.spec import ModelSpec
from tests.model.inference.test_predictor import as_tensor

# Convolutions of 256 channels over maps large enough for every faster way that the predictor knows.
SIZES = {"min_size": 320, "max_size": 512, "box_score_thresh": 0.012}
SPEC = ModelSpec(num_classes=90, norm="batch", image_min_size=320, image_max_size=512, score_threshold=0.012)


def drawn(height, width, seed):
    """Smooth shapes with noise: maps with something on them."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 6, 8)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def networks():
    """torchvision's network and ours with its weights, class scores tamed so that they are no zeros and ones."""
    torch.manual_seed(0)
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **SIZES).eval()
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(0.2)
    ours = build_model(SPEC)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_exact_mode_finds_torchvisions_detections_one_to_one(networks):
    theirs, ours = networks
    predictor = Predictor(ours, SPEC)
    pictures = [drawn(320, 416, 0), drawn(300, 200, 1)]
    for picture in pictures:
        with torch.inference_mode():
            (want,) = theirs([as_tensor(picture)])
        (found,) = predictor.predict([picture])
        assert len(found.scores) == len(want["scores"]) >= 20
        assert 0.013 < np.median(found.scores) < 0.9, "scores of 0 and 1 would show nothing"
        left = set(range(len(found.scores)))
        for box, label, score in zip(want["boxes"].numpy(), want["labels"].tolist(), want["scores"].tolist()):
            same = [i for i in left if found.labels[i] == label and np.abs(found.boxes[i] - box).max() <= 0.05]
            assert same, f"torchvision's box {box} of class {label} was not found"
            best = min(same, key=lambda i: abs(found.scores[i] - score))
            assert abs(found.scores[best] - score) <= 1e-3
            left.remove(best)
        assert not left


def test_detections_do_not_depend_on_the_batchmates():
    torch.manual_seed(1)
    spec = ModelSpec.tiny(num_classes=3, score_threshold=0.0, image_min_size=320, image_max_size=320)
    predictor = Predictor(build_model(spec), spec)
    pictures = [drawn(200, 300, seed) for seed in range(4)]
    alone = [predictor.predict([picture])[0] for picture in pictures]
    others = [np.zeros_like(pictures[0]), *pictures]
    for batch, offset in ((others, 1), (pictures[::-1], None)):
        together = predictor.predict(batch)
        for index, want in enumerate(alone):
            found = together[index + offset] if offset is not None else together[len(pictures) - 1 - index]
            np.testing.assert_array_equal(found.labels, want.labels)
            np.testing.assert_allclose(found.boxes, want.boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)
            np.testing.assert_allclose(found.mask_probs, want.mask_probs, atol=1e-4)


def test_fast_mode_says_why_it_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    dtype, reason = native_dtype("fast", "cpu")
    assert dtype == torch.float32 and "bfloat16" in reason
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert native_dtype("fast", "cpu") == (torch.bfloat16, None)
    assert native_dtype("exact", "cpu") == (torch.float32, None)
    with pytest.raises(ValueError, match="mode='quick'"):
        native_dtype("quick", "cpu")


def test_fast_mode_finds_nearly_the_same(networks):
    _, ours = networks
    picture = drawn(320, 416, 0)
    (exact,) = Predictor(ours, SPEC).predict([picture])
    (fast,) = Predictor(ours, SPEC, dtype=torch.bfloat16).predict([picture])
    assert fast.boxes.dtype == fast.scores.dtype == fast.mask_probs.dtype == np.float32
    assert not np.array_equal(fast.scores, exact.scores)
    np.testing.assert_allclose(np.sort(fast.scores)[-20:], np.sort(exact.scores)[-20:], rtol=0.1)
