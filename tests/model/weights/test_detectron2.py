"""detectron2 weights: names and order are converted, and features and detections are those that detectron2 computed."""

import json
import runpy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.network import build_model
from model.presets import preset
from model.spec import ModelSpec
from model.weights.detectron2 import from_detectron2, rename

ARCHITECTURES = (
    *("mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_101_FPN_3x", "mask_rcnn_X_101_32x8d_FPN_3x"),
    *("mask_rcnn_R_50_C4_3x", "mask_rcnn_R_101_C4_3x", "mask_rcnn_R_50_DC5_3x", "keypoint_rcnn_R_50_FPN_3x"),
)


@pytest.fixture(scope="module")
def parity(shared_data):
    return shared_data / "detectron2_parity"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_has_a_counterpart_of_the_same_shape(parity, name):
    shapes = json.loads((parity / f"{name}.shapes.json").read_text())
    spec = preset(name)
    # On the meta device: only names and shapes matter here.
    with torch.device("meta"):
        model = build_model(spec)
        source = {name: torch.empty(shape) for name, shape in shapes.items()}
    ours = from_detectron2(source, spec)
    assert len(ours) == len(source)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}


def seeded_network(parity, name):
    """The network with weights that are a function of names and shapes, the image, and what detectron2 computed."""
    tool = runpy.run_path(str(parity.parents[1] / "tools" / "seeded_state_dict.py"))
    shapes = json.loads((parity / f"{name}.shapes.json").read_text())
    scale = json.loads((parity / f"{name}.info.json").read_text())["cls_scale"]
    source = tool["seeded_state_dict"](shapes, scale)
    # The image has this size: it is not resized.
    spec = preset(name, image_min_size=320, image_max_size=384)
    model = build_model(spec).eval()
    weights = from_detectron2({key: torch.from_numpy(value) for key, value in source.items()}, spec)
    model.load_state_dict(weights, strict=True)
    image = np.load(parity / "image_bgr.npy")[..., ::-1].copy()
    return model, torch.from_numpy(image).permute(2, 0, 1).float() / 255, np.load(parity / f"{name}.npz")


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_R_50_FPN_3x",
        pytest.param("keypoint_rcnn_R_50_FPN_3x", marks=pytest.mark.long),
        # A thousand RoIs through the last stage of a ResNet.
        pytest.param("mask_rcnn_R_50_C4_3x", marks=pytest.mark.slow),
    ],
)
def test_features_and_detections_are_detectron2s(parity, name):
    model, image, figures = seeded_network(parity, name)
    with torch.no_grad():
        batch, _ = model.transform([image])
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        heads, parts = model.roi_heads, model.dense_parts()
        detected = heads.detect(features, proposals, batch.image_sizes, parts)[0]
        has_keypoints = "keypoints" in detected
        maps = parts.keypoint(heads.keypoint_roi_pool(features, [detected["boxes"]])) if has_keypoints else None
    check_features(features, figures)
    check_detections({key: value.numpy() for key, value in detected.items()}, figures, maps)


def test_features_of_c4_are_detectron2s(parity):
    model, image, figures = seeded_network(parity, "mask_rcnn_R_50_C4_3x")
    with torch.no_grad():
        check_features(model.backbone(model.transform([image])[0].tensors), figures)


def check_features(features, figures):
    names = [name for name in figures if name.startswith("feat_")]
    assert len(names) == len(features)
    for name, feature in zip(names, features.values()):
        height, width = feature.shape[-2:]
        ours = feature[0, :8, :: max(height // 8, 1), :: max(width // 8, 1)].numpy()
        assert np.abs(ours - figures[name]).max() <= 1e-3 * np.abs(figures[name]).max(), name


def check_detections(detected, figures, maps=None):
    likely = np.flatnonzero(figures["scores"] > 0.1)
    assert len(likely) > 50
    for index in likely:
        same_class = np.flatnonzero(detected["labels"] == figures["classes"][index] + 1)
        distances = np.abs(detected["boxes"][same_class] - figures["boxes"][index]).max(axis=1)
        match = same_class[distances.argmin()]
        assert distances.min() <= 0.1
        assert abs(detected["scores"][match] - figures["scores"][index]) <= 1e-3
        if "mask_probs" in figures:
            assert np.abs(detected["masks"][match, 0] - figures["mask_probs"][index]).max() <= 1e-2
        if "keypoints" in figures:
            check_keypoints(
                detected["boxes"][match], detected["keypoints"][match], figures["keypoints"][index], maps[match]
            )


def check_keypoints(box, ours, expected, maps):
    """Keypoints differ as little as boxes, except where two pixels of the heat map are its maximum up to rounding."""
    moved_px = np.abs(ours[:, :2] - expected[:, :2]).max(axis=1)
    for k in np.flatnonzero(moved_px > 0.1):
        width, height = np.maximum(box[2:] - box[:2], 1)
        size = (int(np.ceil(height)), int(np.ceil(width)))
        resized = F.interpolate(maps[None, k : k + 1], size=size, mode="bicubic", align_corners=False)[0, 0].numpy()
        scale = np.array([size[1] / width, size[0] / height])
        for keypoints in (ours, expected):
            x, y = np.rint((keypoints[k, :2] - box[:2]) * scale - 0.5).astype(int)
            assert resized[y, x] == pytest.approx(resized.max(), rel=1e-5), f"keypoint {k} is elsewhere"


def test_background_moves_from_last_to_first():
    spec = ModelSpec(num_classes=2)
    logits = torch.tensor([1.0, 2, 0])
    ours = from_detectron2(
        {
            "proposal_generator.rpn_head.conv.bias": torch.zeros(256),
            "roi_heads.box_predictor.cls_score.bias": logits,
            "roi_heads.box_predictor.bbox_pred.bias": torch.arange(8.0),
            "roi_heads.mask_head.predictor.bias": torch.tensor([5.0, 6]),
            "pixel_mean": torch.zeros(3),
        },
        spec,
    )
    assert "pixel_mean" not in ours
    assert ours["roi_heads.box_predictor.cls_score.bias"].tolist() == [0, 1, 2]
    assert ours["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + list(range(8))
    assert ours["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 5, 6]


def test_anchors_are_reordered_from_size_by_size_to_ratio_by_ratio():
    spec = ModelSpec(neck="c5", anchor_sizes=((32, 64),), anchor_ratios=(0.5, 1.0, 2.0))
    # detectron2: three ratios for each size; ours: two sizes for each ratio.
    ours = from_detectron2({"proposal_generator.rpn_head.objectness_logits.bias": torch.arange(6.0)}, spec)
    assert ours["rpn.head.cls_logits.bias"].tolist() == [0, 3, 1, 4, 2, 5]
    deltas = torch.arange(24.0)
    ours = from_detectron2({"proposal_generator.rpn_head.anchor_deltas.bias": deltas}, spec)
    assert ours["rpn.head.bbox_pred.bias"].tolist()[4:8] == [12, 13, 14, 15]


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("backbone.bottom_up.stem.conv1.norm.weight", "backbone.body.bn1.weight"),
        ("backbone.res3.1.conv2.norm.running_var", "backbone.body.layer2.1.bn2.running_var"),
        ("roi_heads.res5.0.shortcut.norm.bias", "roi_heads.res5.layer4.0.downsample.1.bias"),
        ("backbone.fpn_output5.bias", "backbone.fpn.layer_blocks.3.0.bias"),
        ("roi_heads.keypoint_head.conv_fcn8.weight", "roi_heads.keypoint_head.14.weight"),
        ("something.else", "something.else"),
    ],
)
def test_tensor_names_are_converted(name, renamed):
    assert rename(name) == renamed
