"""Every member of the family builds, learns for one step with all of its parameters, and predicts."""

import pytest
import torch
from torchvision.ops import StochasticDepth

from model.network import build_model
from model.spec import BACKBONES, ModelSpec
from tests.model.small_trainings import QUICK, build, check_prediction, check_training_step, samples

ONE_MAP = {"anchor_sizes": ((16, 32, 64),), "rpn_channels": 32}
# Narrow heads: what is tested of a backbone is the backbone.
NARROW = {"fpn_channels": 32, "box_head_channels": 32, "mask_head_channels": (32,), "mask_deconv_channels": 32}
HEADS = {**QUICK, **NARROW, "backbone": "tiny", "norm": "group", "num_classes": 2}

MEMBERS = {
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
            # A block that is left out of a step learns nothing in it.
            module.p = 0.0
        if name.endswith(("attention1", "attention2", "attention3", "attention4")):
            # An attention that starts as the identity has nothing to tell its first layer in the first step.
            torch.nn.init.normal_(module.fc2.weight, std=0.1)
    images, targets = samples(spec.in_channels, spec.num_keypoints)
    losses = check_training_step(model, images, targets)
    expected = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    expected |= {"loss_mask"} if spec.mask_head != "none" else set()
    expected |= {"loss_mask_dice"} if spec.mask_loss == "bce_dice" else set()
    expected |= {"loss_keypoint"} if spec.num_keypoints else set()
    assert set(losses) == expected
    found = check_prediction(model, images)
    assert ("masks" in found[0]) == (spec.mask_head != "none")
    if spec.num_keypoints:
        assert found[0]["keypoints"].shape == (len(found[0]["scores"]), spec.num_keypoints, 3)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_with_pyramid(name):
    check_member(ModelSpec(**{**HEADS, "backbone": name, "norm": "batch"}))


@pytest.mark.parametrize("name", MEMBERS)
def test_member(name):
    check_member(ModelSpec(**{**HEADS, **MEMBERS[name]}))


def test_a_backbone_of_ones_own_may_give_a_list_or_a_dict_or_one_map():
    class Own(torch.nn.Module):
        out_channels, strides = 8, (8, 16)

        def __init__(self, kind):
            super().__init__()
            self.convs = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Conv2d(8, 8, 2, 2)])
            self.kind = kind
            if kind == "tensor":
                self.strides = (8,)

        def forward(self, images):
            fine = self.convs[0](images)
            if self.kind == "tensor":
                return fine
            maps = [fine, self.convs[1](fine)]
            return maps if self.kind == "list" else {"a": maps[0], "b": maps[1]}

    images, targets = samples()
    for kind in ("tensor", "list", "dict"):
        own = Own(kind)
        # The anchors of the spec are for its own neck; the network of one's own has as many maps as it says.
        spec = ModelSpec(**{**HEADS, "neck": "c5", **ONE_MAP})
        if kind != "tensor":
            object.__setattr__(spec, "anchor_sizes", ((16.0,), (32.0,)))
        model = build_model(spec, backbone=own)
        assert torch.isfinite(sum(model(images, targets).values()))
        check_prediction(model, images)


def test_predictions_with_true_boxes_are_refused():
    model = build(ModelSpec(**{**HEADS, "proposals": "ground_truth"})).eval()
    images, targets = samples()
    with pytest.raises(ValueError, match="for training only"):
        model(images, targets)
