"""Checkpoints from published weights: the network is told by the tensors, classes are COCO's, nothing is left over."""

import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torchvision.models import detection

from model.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint_folder import CheckpointError
from model.network import build_model
from model.presets import DETECTRON2_NAMES, TORCHVISION_NAMES, preset
from model.weights.detectron2 import rename
from model.weights.published import checkpoint_from_weights, find_spec

V2_FILE = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"


def published_state_dict(name, **changes):
    """The state dict of torchvision's network of this name, with random weights."""
    torch.manual_seed(1)
    return getattr(detection, name)(weights=None, weights_backbone=None, **changes).state_dict()


def test_coco_is_torchvisions_v2_with_cocos_own_ids(hub):
    source = published_state_dict("maskrcnn_resnet50_fpn_v2")
    torch.save(source, hub / V2_FILE)
    checkpoint = checkpoint_from_weights("coco")
    ids = [category.id for category in checkpoint.categories]
    assert (len(ids), ids[0], ids[11], ids[-1]) == (80, 1, 13, 90)
    assert checkpoint.categories[11].name == "stop sign"
    scores = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(checkpoint.state_dict[scores], source[scores][[0, *ids]])
    assert checkpoint.sha256 == checkpoint_from_weights("torchvision:maskrcnn_resnet50_fpn_v2").sha256


def test_the_sha256_is_that_of_the_written_checkpoint(tmp_path):
    torch.save(published_state_dict("maskrcnn_resnet50_fpn_v2"), tmp_path / "any name.pth")
    checkpoint = checkpoint_from_weights(str(tmp_path / "any name.pth"))
    written = save_checkpoint(
        tmp_path / "folder",
        model=checkpoint.build(),
        spec=checkpoint.spec,
        categories=checkpoint.categories,
        progress=checkpoint.progress,
    )
    assert written == checkpoint.sha256 == load_checkpoint(tmp_path / "folder").sha256


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_torchvisions_networks_are_told_by_their_tensors(name):
    with torch.device("meta"):
        spec = find_spec(published_state_dict(name), "a file")
    assert spec == replace(preset(name), num_classes=spec.num_classes)
    assert spec.num_classes == (1 if "keypoint" in name else 80)


@pytest.mark.parametrize("body", ["R_50_FPN", "R_101_FPN", "X_101_32x8d_FPN", "R_50_C4", "R_50_DC5"])
def test_the_zoos_networks_are_told_by_their_tensors(shared_data, body):
    """The names and shapes are those that detectron2 itself lists."""
    name = f"mask_rcnn_{body}"
    shapes = json.loads((shared_data / "detectron2_parity" / f"{name}_3x.shapes.json").read_text())
    with torch.device("meta"):
        source = {tensor: torch.empty(shape) for tensor, shape in shapes.items()}
        assert find_spec(source, "a file") == preset(name)


def to_detectron2_name(name):
    """detectron2's name of a tensor of `mask_rcnn_R_50_FPN`."""
    if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.(\w+)", name):
        return f"backbone.fpn_{'lateral' if match[1] == 'inner' else 'output'}{int(match[2]) + 2}.{match[3]}"
    if match := re.match(r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", name):
        return f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}.{match[2]}"
    name = re.sub(r"backbone\.body\.layer(\d)\.", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}.", name)
    for ours, theirs in (
        (r"backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
        (r"backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
        (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
        (r"box_head\.fc6\.", "box_head.fc1."),
        (r"box_head\.fc7\.", "box_head.fc2."),
        (r"mask_predictor\.conv5_mask\.", "mask_head.deconv."),
        (r"mask_predictor\.mask_fcn_logits\.", "mask_head.predictor."),
    ):
        name = re.sub(ours, theirs, name)
    return name


def test_a_pickle_of_the_zoo_is_a_checkpoint_and_loses_no_tensor(tmp_path):
    torch.manual_seed(2)
    spec = preset("mask_rcnn_R_50_FPN")
    source = {}
    for name, tensor in build_model(spec).state_dict().items():
        if name.endswith(("cls_score.weight", "cls_score.bias")):
            tensor = torch.cat([tensor[1:], tensor[:1]])  # detectron2's background is the last class
        elif name.endswith(("box_predictor.bbox_pred.weight", "box_predictor.bbox_pred.bias")):
            tensor = tensor[4:]  # and has no box
        elif "mask_fcn_logits" in name:
            tensor = tensor[1:]  # and no mask
        theirs = to_detectron2_name(name)
        assert rename(theirs) == name
        source[theirs] = tensor.numpy()
    (tmp_path / "model_final_f10217.pkl").write_bytes(pickle.dumps({"model": source, "__author__": "x"}))
    checkpoint = checkpoint_from_weights(str(tmp_path / "model_final_f10217.pkl"))
    assert checkpoint.spec == spec
    assert [checkpoint.categories[index].name for index in (0, 79)] == ["person", "toothbrush"]
    bias = "roi_heads.box_predictor.cls_score.bias"
    assert torch.equal(checkpoint.state_dict[bias], torch.from_numpy(source[to_detectron2_name(bias)]).roll(1))


def test_a_file_fine_tuned_to_other_classes_wants_their_names(tmp_path):
    path = tmp_path / "cells.pth"
    torch.save(published_state_dict("maskrcnn_resnet50_fpn_v2", num_classes=3), path)
    with pytest.raises(CheckpointError, match=r"2 classes have no names in the file; give model\.classes"):
        checkpoint_from_weights(str(path))
    with pytest.raises(CheckpointError, match=r"model\.classes: the class map has 3 categories"):
        checkpoint_from_weights(str(path), class_names=["a", "b", "c"])
    checkpoint = checkpoint_from_weights(str(path), class_names=["cell", "nucleus"])
    assert [(category.id, category.name) for category in checkpoint.categories] == [(1, "cell"), (2, "nucleus")]


@pytest.mark.parametrize(
    ("source", "network", "message"),
    [
        ("coco", None, f"{V2_FILE} cannot be fetched .*; put that file into "),
        ("coco", "mask_rcnn_R_50_FPN", "model.network is not allowed with it"),
        ("torchvision:resnet50", None, "allowed are coco, torchvision:maskrcnn_resnet50_fpn, "),
        ("nosuch.pth", None, "no such file"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_sentence(hub, source, network, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_weights(source, network=network)


def test_a_file_of_another_network_is_refused_with_those_that_are_known(tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="its 1 tensors are those of no network known here; known are "):
        checkpoint_from_weights(str(tmp_path / "other.pth"))


def test_a_named_network_that_does_not_fit_names_a_tensor(tmp_path):
    torch.save(published_state_dict("maskrcnn_resnet50_fpn"), tmp_path / "v1.pth")
    with pytest.raises(CheckpointError, match=r"tensors of the network are missing .* such as \S+ "):
        checkpoint_from_weights(str(tmp_path / "v1.pth"), network="maskrcnn_resnet50_fpn_v2")


def test_every_name_of_the_zoo_has_a_preset():
    assert all(preset(name).num_classes in (1, 80) for name in DETECTRON2_NAMES)
