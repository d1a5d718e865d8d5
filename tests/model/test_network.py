"""The whole network: every kind that a spec can name trains for one step and predicts; wrong targets are refused."""

from typing import Any

import pytest
import torch
from torchvision.ops import StochasticDepth

from model.network import build_model, check_targets
from model.spec import BACKBONES, ModelSpec
from tests.model.small_trainings import ONE_MAP, QUICK, build, check_prediction, check_training_step, samples

SPEC = ModelSpec.tiny(num_classes=2, **QUICK)
# Narrow heads, so that the tests of backbones and necks spend little time on them.
NARROW = {"fpn_channels": 32, "box_head_channels": 32, "mask_head_channels": (32,), "mask_deconv_channels": 32}
HEADS: dict[str, Any] = {**QUICK, **NARROW, "backbone": "tiny", "norm": "group", "num_classes": 2}

MEMBERS: dict[str, dict[str, Any]] = {
    # Necks.
    "c4": {
        "backbone": "resnet18",
        "norm": "batch",
        "neck": "c4",
        **ONE_MAP,
        "mask_head_channels": (),
        "mask_output_size": 14,
    },
    "c4 of bottlenecks, first stride": {
        **{"backbone": "resnet50", "norm": "batch", "neck": "c4", **ONE_MAP, "stride_in_1x1": True},
        **{"mask_output_size": 28, "box_batch_size_per_image": 8},
    },
    "c5": {"backbone": "resnet18", "norm": "batch", "neck": "c5", **ONE_MAP},
    "c5 of vgg": {"backbone": "vgg16", "neck": "c5", **ONE_MAP},
    "dc5": {"backbone": "resnet50", "norm": "batch", "neck": "dc5", **ONE_MAP},
    # The V2 recipe at a small width.
    "v2": {
        **{"norm": "batch", "head_norm": "batch", "rpn_convs": 2, "box_head_convs": 4, "box_head_conv_channels": 32},
        **{"box_head_fcs": 1, "mask_head_channels": (32, 32, 32, 32)},
    },
    "group norm in the heads": {"head_norm": "group", "box_head_convs": 1, "box_head_conv_channels": 32},
    "synchronised batch norm": {"norm": "sync_batch", "head_norm": "sync_batch"},
    "frozen batch norm": {"norm": "frozen_batch"},
    "squeeze-excite": {"attention": "squeeze_excite"},
    "squeeze-excite, efficientnet": {"attention": "squeeze_excite", "backbone": "efficientnet_b0", "norm": "batch"},
    "four channels": {"in_channels": 4, "image_mean": (0.5,) * 4, "image_std": (0.3,) * 4},
    "one channel": {"in_channels": 1, "image_mean": (0.5,), "image_std": (0.3,)},
    "bgr": {"channel_order": "bgr"},
    # Region proposals.
    "nine anchors, 512 wide": {
        "anchor_sizes": tuple((s, s * 1.26, s * 1.59) for s in (8, 16, 32, 64, 128)),
        "rpn_channels": 512,
    },
    "exact anchors": {"anchor_style": "detectron2"},
    "true boxes as proposals": {"proposals": "ground_truth"},
    "least proposals": {"rpn_min_proposals": 30},
    # Regions of interest.
    **{
        f"{op}, {reduce}": {"roi_op": op, "roi_reduce": reduce}
        for op in ("align", "pool", "warp")
        for reduce in ("average", "max")
        if (op, reduce) != ("align", "average")
    },
    "aligned by half a pixel, adaptive": {"roi_half_pixel": True, "roi_sampling_ratio": 0},
    # Masks.
    "fcn, 56": {"mask_output_size": 56},
    "fcn, softmax": {"mask_activation": "softmax"},
    "fcn, class-agnostic": {"mask_class_agnostic": True},
    "fcn, class-agnostic softmax": {"mask_class_agnostic": True, "mask_activation": "softmax"},
    "five convolutions, 28": {"mask_head": "conv5", "mask_head_channels": (16,) * 5},
    "five convolutions, 56": {"mask_head": "conv5", "mask_head_channels": (16,) * 5, "mask_output_size": 56},
    "mlp of two layers": {"mask_head": "mlp", "mask_head_channels": (32, 32)},
    "mlp of three layers, softmax": {
        **{"mask_head": "mlp", "mask_head_channels": (32, 32, 32), "mask_activation": "softmax"}
    },
    "no masks": {"mask_head": "none"},
    # Boxes.
    "convolution and one layer": {"box_head_convs": 1, "box_head_conv_channels": 16, "box_head_fcs": 1},
    "soft-nms, linear": {"nms": "soft_linear"},
    "soft-nms, gaussian": {"nms": "soft_gaussian"},
    # Keypoints, with masks and without.
    "keypoints and masks": {"num_keypoints": 5, "keypoint_head_channels": (16,) * 8},
    "keypoints alone": {"num_keypoints": 5, "keypoint_head_channels": (16,) * 8, "mask_head": "none"},
    # Losses.
    "focal": {"class_loss": "focal"},
    **{f"box loss {name}": {"box_loss": name} for name in ("l1", "iou", "giou", "diou", "ciou")},
    **{f"rpn box loss {name}": {"rpn_box_loss": name} for name in ("l1", "iou", "giou", "diou", "ciou")},
    **{f"mask loss {name}": {"mask_loss": name} for name in ("dice", "bce_dice")},
}


def check_member(spec: ModelSpec) -> None:
    model = build(spec)
    for name, module in model.named_modules():
        if isinstance(module, StochasticDepth):
            # A block that is dropped from a step gets no gradient in it.
            module.p = 0.0
        if name.endswith(("attention1", "attention2", "attention3", "attention4")):
            # An attention block that starts as the identity gives its first layer no gradient in the first step.
            torch.nn.init.normal_(module.fc2.weight, std=0.1)
    images, targets = samples(spec.in_channels, spec.num_keypoints)
    losses = check_training_step(model, images, targets)
    expected = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    expected |= {"loss_mask"} if spec.mask_head != "none" else set()
    expected |= {"loss_mask_dice"} if spec.mask_loss == "bce_dice" else set()
    expected |= {"loss_keypoint"} if spec.num_keypoints else set()
    assert set(losses) == expected
    detections = check_prediction(model, images)
    assert ("masks" in detections[0]) == (spec.mask_head != "none")
    if spec.num_keypoints:
        assert detections[0]["keypoints"].shape == (len(detections[0]["scores"]), spec.num_keypoints, 3)


# The large ones are made of the same blocks as the small ones, and take longer.
LARGE = ("resnet101", "resnet152", *(name for name in BACKBONES if name.startswith("resnext")))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in BACKBONES]
)
def test_every_backbone_trains_and_predicts_with_a_pyramid(name):
    check_member(ModelSpec(**{**HEADS, "backbone": name, "norm": "batch"}))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_kind_of_neck_head_and_loss_trains_and_predicts(name):
    check_member(ModelSpec(**{**HEADS, **MEMBERS[name]}))


class OwnBackbone(torch.nn.Module):
    """Two convolutions of stride 8 and 2, whose maps come as one tensor (the first), a list or a dict."""

    out_channels = 8

    def __init__(self, output: str) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Conv2d(8, 8, 2, 2)])
        self.output = output
        self.strides = (8,) if output == "tensor" else (8, 16)

    def forward(self, images: torch.Tensor) -> Any:
        fine = self.convs[0](images)
        if self.output == "tensor":
            return fine
        maps = [fine, self.convs[1](fine)]
        return maps if self.output == "list" else {"a": maps[0], "b": maps[1]}


@pytest.mark.parametrize("output", ["tensor", "list", "dict"])
def test_a_custom_backbone_may_give_one_map_a_list_or_a_dict(output):
    images, targets = samples()
    # ModelSpec allows the number of maps of its own necks alone; this backbone has one or two.
    spec = ModelSpec(**{**HEADS, "neck": "c5", **ONE_MAP})
    if output != "tensor":
        object.__setattr__(spec, "anchor_sizes", ((16.0,), (32.0,)))
    model = build_model(spec, backbone=OwnBackbone(output))
    assert torch.isfinite(torch.stack(list(model(images, targets).values()))).all()
    check_prediction(model, images)


def test_a_prediction_takes_no_true_boxes():
    model = build(ModelSpec(**{**HEADS, "proposals": "ground_truth"})).eval()
    images, targets = samples()
    with pytest.raises(ValueError, match="for training only"):
        model(images, targets)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": torch.tensor([[5.0, 5, 5, 9]])}, r"target 0: box \[5.0, 5.0, 5.0, 9.0\] has no area"),
        ({"boxes": torch.tensor([[5.0, float("nan"), 6, 9]])}, "has no area"),
        ({"boxes": torch.tensor([[1, 1, 2, 2]])}, "allowed is float"),
        ({"labels": torch.tensor([4])}, "labels from 4 to 4; allowed is 1 to 3"),
        ({"labels": torch.tensor([0])}, "allowed is 1 to 3"),
        ({"labels": torch.tensor([1, 2])}, "allowed is int64"),
        ({"masks": torch.zeros(1, 9, 128).byte()}, r"masks are \[1, 9, 128\]"),
        ({"masks": None}, "there are no masks"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_by_its_position(change, words):
    target = {
        "boxes": torch.tensor([[1.0, 1, 9, 9]]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 128, 128, dtype=torch.uint8),
    }
    target = {name: value for name, value in {**target, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        check_targets([torch.rand(3, 128, 128)], [target], num_classes=3, has_masks=True)


def test_training_without_targets_is_refused():
    with pytest.raises(ValueError, match="1 images need as many targets, not 0"):
        build(SPEC).train()([torch.rand(3, 128, 128)])


def test_a_network_needs_a_class():
    with pytest.raises(ValueError, match="num_classes=0"):
        build_model(SPEC.replace(num_classes=0))


def test_true_boxes_replace_the_proposals_of_images_that_have_any():
    model = build(SPEC.replace(proposals="ground_truth")).train()
    pooled_boxes: list[list[torch.Tensor]] = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda _module, inputs, _output: pooled_boxes.append(inputs[1]))
    images, targets = samples()
    targets[1] = {name: value[:0] for name, value in targets[1].items()}
    model(images, targets)
    # The short side has 64 px already: the image is not resized.
    assert sorted(pooled_boxes[0][0].tolist()) == sorted(targets[0]["boxes"].tolist())
    # The second image has none: it keeps the RPN's proposals, all background.
    assert len(pooled_boxes[0][1]) > 1


def test_loss_weights_scale_their_terms():
    images, targets = samples()
    names = {
        "loss_classifier": "class_loss_weight",
        "loss_box_reg": "box_loss_weight",
        "loss_mask": "mask_loss_weight",
        "loss_objectness": "rpn_class_loss_weight",
        "loss_rpn_box_reg": "rpn_box_loss_weight",
    }
    weights = {field: 2.0 + index for index, field in enumerate(names.values())}
    results = []
    for spec in (SPEC, SPEC.replace(**weights)):
        model = build(spec).train()
        torch.manual_seed(1)
        results.append(model(images, targets))
    for name, field in names.items():
        assert results[1][name].item() == pytest.approx(results[0][name].item() * weights[field], rel=1e-5), name
