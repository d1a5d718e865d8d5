"""Weight loading: where published weights are found, which tensors are loaded, and the report on the others."""

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision import models
from torchvision.models import detection

from model.network import MaskRCNN, build_model
from model.presets import preset
from model.spec import ModelSpec
from model.weights.loading import WeightsReport, inflate, load_weights, read_state_dict
from tests.model.small_trainings import build

TINY = ModelSpec.tiny(num_classes=3)
V1_FILE = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"


def report_of(model: MaskRCNN) -> WeightsReport:
    assert model.weights_report is not None
    return model.weights_report


@pytest.fixture(scope="module")
def coco_v1():
    """A state dict like that of torchvision's COCO V1 file, with the names of the torchvision that wrote it."""
    torch.manual_seed(3)
    state_dict = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    renamed = {}
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if name.startswith("roi_heads.mask_head."):
            index, _, kind = name.removeprefix("roi_heads.mask_head.").split(".")
            name = f"roi_heads.mask_head.mask_fcn{int(index) + 1}.{kind}"
        renamed[name] = tensor
    return renamed


def test_coco_weights_come_from_the_file_that_torch_would_download(hub, coco_v1):
    torch.save(coco_v1, hub / V1_FILE)
    model = build_model(preset("maskrcnn_resnet50_fpn"), weights="coco")
    report = report_of(model)
    assert not report.left_out and not report.fresh
    assert torch.equal(model.state_dict()["rpn.head.conv.0.0.weight"], coco_v1["rpn.head.conv.weight"])
    assert torch.equal(
        model.state_dict()["roi_heads.mask_head.3.0.bias"], coco_v1["roi_heads.mask_head.mask_fcn4.bias"]
    )


def test_another_number_of_classes_keeps_all_but_the_predictors(hub, coco_v1):
    torch.save(coco_v1, hub / V1_FILE)
    report = report_of(build_model(preset("maskrcnn_resnet50_fpn", num_classes=2), weights="coco"))
    predictors = {f"roi_heads.box_predictor.{layer}" for layer in ("cls_score", "bbox_pred")}
    predictors |= {"roi_heads.mask_predictor.mask_fcn_logits"}
    expected = {f"{layer}.{kind}" for layer in predictors for kind in ("weight", "bias")}
    assert set(report.left_out) == set(report.fresh) == expected
    assert report.left_out["roi_heads.box_predictor.cls_score.bias"] == "[91] in the file, [3] in this network"
    assert "left out roi_heads.box_predictor.cls_score.bias: [91]" in str(report)


def test_eighty_classes_are_the_used_ids_of_coco(tmp_path, coco_v1):
    coco_v1 = dict(coco_v1)
    coco_v1["roi_heads.box_predictor.cls_score.bias"] = torch.arange(91.0)
    coco_v1["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(91.0).repeat_interleave(4)
    coco_v1["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.arange(91.0)
    torch.save({"model": coco_v1}, tmp_path / "w.pth")
    model = build_model(preset("maskrcnn_resnet50_fpn", num_classes=80), weights=str(tmp_path / "w.pth"))
    assert not report_of(model).left_out and "91 rows" in str(model.weights_report)
    state = model.state_dict()
    rows = state["roi_heads.box_predictor.cls_score.bias"].int().tolist()
    # Id 12 was never given to a class; the last one is toothbrush, 90.
    assert len(rows) == 81 and rows[:13] == [*range(12), 13] and rows[-1] == 90
    assert state["roi_heads.box_predictor.bbox_pred.bias"][::4].int().tolist() == rows
    assert state["roi_heads.mask_predictor.mask_fcn_logits.bias"].int().tolist() == rows


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (preset("maskrcnn_resnet50_fpn"), "maskrcnn_resnet50_fpn_coco"),
        (preset("maskrcnn_resnet50_fpn_v2"), "maskrcnn_resnet50_fpn_v2_coco"),
        (preset("keypointrcnn_resnet50_fpn"), "keypointrcnn_resnet50_fpn_coco"),
    ],
)
def test_if_the_download_fails_the_file_to_provide_is_named(hub, spec, name):
    with pytest.raises(ValueError) as error:
        load_weights(torch.nn.Module(), spec, "coco")
    assert name in str(error.value) and str(hub) in str(error.value) and "no route" in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenet_v3_large", "efficientnet_b0"])
def test_imagenet_weights_fill_the_body(hub, name):
    torch.manual_seed(0)
    classifier = getattr(models, name)(weights=None).state_dict()
    torch.save(classifier, hub / models.get_model_weights(name)["IMAGENET1K_V1"].url.rsplit("/", 1)[1])
    spec = ModelSpec.tiny(num_classes=2, backbone=name, norm="batch")
    report = report_of(build_model(spec, weights="imagenet"))
    assert not [fresh for fresh in report.fresh if fresh.startswith("backbone.body.")]
    # The classifier is left out, and EfficientNet's last convolution before it.
    assert all(name.split("body.")[1].startswith(("fc.", "classifier.", "8.")) for name in report.left_out)


def test_imagenet_weights_reach_the_last_stage_of_c4(tmp_path):
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    spec = ModelSpec.tiny(num_classes=2, backbone="resnet18", norm="batch", neck="c4", anchor_sizes=((32,),))
    report = report_of(build_model(spec, weights=str(tmp_path / "resnet18.pth")))
    assert "roi_heads.res5.layer4.1.conv2.weight" in report.loaded


@pytest.mark.parametrize(
    ("spec", "weights", "words"),
    [
        (TINY, "imagenet", ["'tiny'"]),
        (TINY, "coco", ["'resnet50'", "'tiny'"]),
        (preset("maskrcnn_resnet50_fpn", norm_eps=1e-5), "coco", ["norm_eps", "allowed is 0"]),
        (TINY, "/no/such/file.pth", ["/no/such/file.pth", "no such file"]),
    ],
)
def test_weights_that_do_not_exist_are_refused_with_the_reason(hub, spec, weights, words):
    with pytest.raises(ValueError) as error:
        load_weights(torch.nn.Module(), spec, weights)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_files_without_weights_are_refused(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "object.pth")
    for name in ("torn.pth", "list.pkl", "object.pth"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="nothing in them fits"):
        build_model(TINY, weights=str(tmp_path / "other.pth"))


def test_weights_load_from_safetensors_files_and_folders(tmp_path):
    first = build(TINY, seed=1)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", str(tmp_path)):
        second = build_model(TINY, weights=str(path))
        assert not report_of(second).left_out and not report_of(second).fresh
        assert torch.equal(second.state_dict()["rpn.head.cls_logits.weight"], first.rpn.head.cls_logits.weight)


def test_inflated_weights_give_the_same_output_for_grey_images():
    weight = torch.rand(4, 3, 7, 7)
    for channels in (1, 3, 6):
        grey = torch.rand(1, 1, 20, 20)
        before = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
        after = torch.nn.functional.conv2d(grey.expand(-1, channels, -1, -1), inflate(weight, channels))
        if channels != 1:
            torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    # Four channels: the first channel is repeated, and all are scaled by three quarters.
    torch.testing.assert_close(inflate(weight, 4), weight[:, [0, 1, 2, 0]] * 0.75)


@pytest.mark.parametrize("stem_init", ["inflate", "fresh"])
def test_weights_for_another_number_of_channels_are_inflated_or_left_out(tmp_path, stem_init):
    source = build(TINY)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    spec = TINY.replace(in_channels=4, image_mean=(0.5,) * 4, image_std=(0.5,) * 4, stem_init=stem_init)
    model = build_model(spec, weights=str(tmp_path / "w.pth"))
    stem = "backbone.body.conv1.weight"
    assert (stem in report_of(model).fresh) == (stem_init == "fresh")
    assert any(stem in note for note in report_of(model).notes)
    if stem_init == "inflate":
        assert torch.equal(model.state_dict()[stem], inflate(source.state_dict()[stem], 4))


def test_a_detectron2_pickle_loads(tmp_path, shared_data):
    """From the file format itself, not only by renaming."""
    shapes = json.loads((shared_data / "detectron2_parity/mask_rcnn_R_50_FPN_3x.shapes.json").read_text())
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}))
    model = build_model(preset("mask_rcnn_R_50_FPN_3x"), weights=str(tmp_path / "model_final.pkl"))
    assert not report_of(model).left_out and not report_of(model).fresh and not report_of(model).notes
    plain = build_model(preset("maskrcnn_resnet50_fpn", num_classes=80), weights=str(tmp_path / "model_final.pkl"))
    assert "channel_order='bgr'" in str(plain.weights_report)
