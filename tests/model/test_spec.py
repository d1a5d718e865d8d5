"""ModelSpec: allowed values, conversion to plain values and back."""

import json

import pytest

from model.spec import ModelSpec


def test_spec_survives_json():
    spec = ModelSpec.tiny(num_classes=3, anchor_ratios=(0.25, 1.0))
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(ModelSpec.from_dict(spec.to_dict()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": "resnet51"}, ["backbone='resnet51'", "'resnet50'"]),
        ({"score_threshold": 1.5}, ["score_threshold=1.5", "at most 1"]),
        ({"score_threshold": float("nan")}, ["score_threshold=nan"]),
        ({"num_classes": "3"}, ["num_classes='3'", "int"]),
        ({"num_classes": True}, ["num_classes=True", "int"]),
        ({"max_detections": 0}, ["max_detections=0", "at least 1"]),
        ({"anchor_ratios": []}, ["anchor_ratios=()"]),
        ({"anchor_sizes": ((32,), (64,))}, ["anchor_sizes", "5 tuple"]),
        ({"in_channels": 4}, ["image_mean", "in_channels=4"]),
        ({"rpn_background_iou": 0.8}, ["rpn_background_iou=0.8", "rpn_foreground_iou=0.7"]),
        ({"neck": "c4", "backbone": "vgg16", "anchor_sizes": [[32]]}, ["neck='c4'", "vgg16"]),
        ({"neck": "dc5", "backbone": "resnet18", "anchor_sizes": [[32]]}, ["neck='dc5'", "resnet18"]),
        ({"stride_in_1x1": True, "backbone": "tiny"}, ["stride_in_1x1=True", "tiny"]),
        ({"mask_head": "mlp"}, ["mask_head_channels", "2 or 3"]),
        ({"box_loss_weight": float("inf")}, ["box_loss_weight=inf", "finite"]),
        ({"colour": 1}, ["unknown", "'colour'"]),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(values, words):
    with pytest.raises(ValueError) as error:
        ModelSpec.from_dict(values)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_lists_and_whole_numbers_are_taken_where_tuples_and_floats_are_meant():
    spec = ModelSpec.from_dict({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    assert spec.image_mean == (0.0, 0.0, 0.0)
    assert all(type(value) is float for value in spec.image_std)
