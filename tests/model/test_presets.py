"""Presets are the published networks: torchvision's losses, detections and state dicts, detectron2's settings."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import detection

from model.network import build_model
from model.presets import preset
from tests.model.small_trainings import samples

# Small images and few proposals: the same in both.
SIZES: dict[str, Any] = {
    **{"min_size": 128, "max_size": 192, "box_score_thresh": 0.01, "box_detections_per_img": 20},
    **{"rpn_post_nms_top_n_train": 200, "rpn_post_nms_top_n_test": 100},
}
OUR_SIZES: dict[str, Any] = {
    **{"image_min_size": 128, "image_max_size": 192, "score_threshold": 0.01, "max_detections": 20},
    **{"rpn_post_nms_train": 200, "rpn_post_nms_test": 100},
}
# torchvision builds with plain batch norm where it is given no weights.
CASES = {
    "maskrcnn_resnet50_fpn": preset(
        "maskrcnn_resnet50_fpn", num_classes=6, norm="batch", norm_eps=None, frozen_stages=0, **OUR_SIZES
    ),
    "maskrcnn_resnet50_fpn_v2": preset("maskrcnn_resnet50_fpn_v2", num_classes=6, frozen_stages=0, **OUR_SIZES),
    "keypointrcnn_resnet50_fpn": preset(
        "keypointrcnn_resnet50_fpn", norm="batch", norm_eps=None, frozen_stages=0, **OUR_SIZES
    ),
}


@pytest.fixture(
    scope="module",
    params=[next(iter(CASES)), *(pytest.param(name, marks=pytest.mark.long) for name in list(CASES)[1:])],
)
def networks(request):
    """torchvision's network and ours with its weights; smaller class weights, so that there are detections."""
    torch.manual_seed(0)
    classes = CASES[request.param].num_classes + 1
    make_reference = getattr(detection, request.param)
    reference = make_reference(weights=None, weights_backbone=None, num_classes=classes, **SIZES)
    with torch.no_grad():
        reference.roi_heads.box_predictor.cls_score.weight.mul_(0.05)
    ours = build_model(CASES[request.param])
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


def test_our_state_dict_loads_into_torchvisions_network(networks):
    reference, ours = networks
    reference.load_state_dict(ours.state_dict(), strict=True)


def test_losses_are_torchvisions(networks):
    reference, ours = networks
    images, targets = samples(num_keypoints=17 if ours.num_classes == 1 else 0, num_classes=ours.num_classes)
    # torchvision draws one of its sizes even when there is only one; that would change the later random draws.
    reference.transform.torch_choice = lambda sizes: sizes[-1]
    results = []
    for network in (reference.train(), ours.train()):
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        # The same seed draws the same anchors and proposals.
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(network(images, targets))
        network.load_state_dict(state)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-4, rtol=1e-4)


def test_detections_are_torchvisions(networks):
    reference, ours = networks
    images, _ = samples()
    with torch.no_grad():
        for expected, detected in zip(reference.eval()(images), ours.eval()(images), strict=True):
            assert expected.keys() == detected.keys() and len(expected["scores"]) >= 3
            assert torch.equal(expected["labels"], detected["labels"])
            for name in expected.keys() - {"labels"}:
                torch.testing.assert_close(detected[name], expected[name], atol=1e-4, rtol=1e-4)


def test_frozen_batch_norm_exchanges_state_dicts_too():
    reference: Any = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    ours = build_model(preset("maskrcnn_resnet50_fpn", num_classes=2))
    ours.load_state_dict(reference.state_dict(), strict=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    assert ours.backbone.body["bn1"].eps == 0


def test_detectron2_settings_are_those_of_its_model_zoo(shared_data):
    paths = sorted((shared_data / "detectron2_parity").glob("*.info.json"))
    assert paths
    for path in paths:
        info, spec = json.loads(path.read_text()), preset(path.name.removesuffix(".info.json"))
        np.testing.assert_allclose(np.array(spec.image_mean) * 255, info["pixel_mean_bgr"])
        np.testing.assert_allclose(np.array(spec.image_std) * 255, info["pixel_std_bgr"])
        assert spec.stride_in_1x1 == info["stride_in_1x1"]
        assert [spec.score_threshold, spec.nms_threshold] == [info["score_thresh"], info["nms"]]
        assert spec.rpn_pre_nms_test == info["pre_nms_topk_test"]
        assert spec.rpn_post_nms_test == info["post_nms_topk_test"]
        assert [list(sizes) for sizes in spec.anchor_sizes] == info["anchor_sizes"]
        assert [list(spec.anchor_ratios)] == info["aspect_ratios"]


def test_a_preset_is_found_by_its_published_name():
    assert preset("maskrcnn_resnet50_fpn_v2").box_head_convs == 4
    assert preset("mask_rcnn_R_50_C4_3x") == preset("mask_rcnn_R_50_C4") == preset("mask_rcnn_R_50_C4_1x")


def test_an_unknown_network_is_refused_with_the_known_ones():
    for name in ("mask_rcnn_R_51", "resnet50"):
        with pytest.raises(ValueError, match=rf"network '{name}'.*maskrcnn_resnet50_fpn.*mask_rcnn_R_50_FPN"):
            preset(name)
