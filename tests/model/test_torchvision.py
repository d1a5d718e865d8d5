"""With the same weights, ours is torchvision's network: losses, detections, state dicts both ways."""

import pytest
import torch
from torchvision.models import detection

from model.network import build_model
from model.presets import torchvision_keypoint, torchvision_v1, torchvision_v2
from tests.model.small_trainings import samples

SIZES = {"min_size": 128, "max_size": 192, "box_score_thresh": 0.01}
OUR_SIZES = {"image_min_size": 128, "image_max_size": 192, "score_threshold": 0.01}
# torchvision builds with plain batch norm where it is not handed weights.
CASES = {
    "maskrcnn_resnet50_fpn": torchvision_v1(num_classes=6, norm="batch", norm_eps=None, frozen_stages=0, **OUR_SIZES),
    "maskrcnn_resnet50_fpn_v2": torchvision_v2(num_classes=6, frozen_stages=0, **OUR_SIZES),
    "keypointrcnn_resnet50_fpn": torchvision_keypoint(norm="batch", norm_eps=None, frozen_stages=0, **OUR_SIZES),
}


@pytest.fixture(scope="module", params=CASES)
def networks(request):
    """torchvision's network and ours with its weights, class scores tamed so that there are detections."""
    torch.manual_seed(0)
    classes = CASES[request.param].num_classes + 1
    theirs = getattr(detection, request.param)(weights=None, weights_backbone=None, num_classes=classes, **SIZES)
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(0.05)
    ours = build_model(CASES[request.param])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def test_state_dict_loads_back(networks):
    theirs, ours = networks
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_same_losses(networks):
    theirs, ours = networks
    images, targets = samples(num_keypoints=17 if ours.num_classes == 1 else 0, num_classes=ours.num_classes)
    # torchvision draws one of its sizes, also when there is but one; that would move the other draws.
    theirs.transform.torch_choice = lambda sizes: sizes[-1]
    results = []
    for network in (theirs.train(), ours.train()):
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        # The same seed draws the same anchors and proposals.
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(network(images, targets))
        network.load_state_dict(state)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-4, rtol=1e-4)


def test_same_detections(networks):
    theirs, ours = networks
    images, _ = samples()
    with torch.no_grad():
        for want, found in zip(theirs.eval()(images), ours.eval()(images), strict=True):
            assert want.keys() == found.keys() and len(want["scores"]) >= 3
            assert torch.equal(want["labels"], found["labels"])
            for name in want.keys() - {"labels"}:
                torch.testing.assert_close(found[name], want[name], atol=1e-4, rtol=1e-4)


def test_frozen_batch_norm_exchanges_state_dicts_too():
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    ours = build_model(torchvision_v1(num_classes=2))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.backbone.body["bn1"].eps == 0
