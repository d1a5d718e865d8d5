"""Mask head: probabilities and targets against numbers worked out by hand."""

import math

import pytest
import torch

from model.heads import mask_head
from model.heads.mask_head import (
    build_mask_head,
    log_mask_probabilities,
    mask_roi_size,
    mask_targets,
    num_mask_channels,
)
from model.spec import ModelSpec
from model.training import losses

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def mask_loss(spec, logits, label, target):
    inside, outside = log_mask_probabilities(spec, logits, torch.tensor([label]))
    return losses.mask_losses(spec.mask_loss, inside, outside, torch.tensor(target)[None])


def pixels(*channels):
    """Logits [1, channels, 1, 2] of a mask of two pixels."""
    return torch.tensor(channels).reshape(1, -1, 1, 2)


def test_sigmoid_masks_read_the_channel_of_the_true_class_alone():
    spec = ModelSpec(num_classes=2)
    # Class 2 at its two pixels: p = 3/4, inside the true mask; p = 1/2, outside it.
    terms = mask_loss(spec, pixels([5.0, 5.0], [7.0, 7.0], [LN3, 0.0]), 2, [[1.0, 0.0]])
    assert list(terms) == ["loss_mask"]
    assert terms["loss_mask"].item() == pytest.approx((math.log(4 / 3) + LN2) / 2)


def test_softmax_masks_make_the_classes_compete():
    spec = ModelSpec(num_classes=2, mask_activation="softmax")
    # Shares of background, 1, 2: 1/8, 2/8, 5/8 at both pixels; the true mask has the first alone.
    logits = pixels([0.0, 0.0], [LN2, LN2], [math.log(5), math.log(5)])
    assert mask_loss(spec, logits, 1, [[1.0, 0.0]])["loss_mask"].item() == pytest.approx((LN4 + math.log(8)) / 2)


def test_class_agnostic_masks_have_one_map_for_all_classes():
    sigmoid = ModelSpec(num_classes=5, mask_class_agnostic=True)
    assert num_mask_channels(sigmoid) == 1
    sigmoid_loss = mask_loss(sigmoid, pixels([LN3, 0.0]), 4, [[1.0, 0.0]])["loss_mask"].item()
    assert sigmoid_loss == pytest.approx((math.log(4 / 3) + LN2) / 2)
    softmax = sigmoid.replace(mask_activation="softmax")
    assert num_mask_channels(softmax) == 2
    # Two-way softmax of (0, x) is the sigmoid of x.
    softmax_loss = mask_loss(softmax, pixels([0.0, 0.0], [LN3, 0.0]), 4, [[1.0, 0.0]])["loss_mask"].item()
    assert softmax_loss == pytest.approx(sigmoid_loss)


def test_mask_targets_are_the_true_masks_cropped_to_the_rois():
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, :, 4:] = 1
    boxes = torch.tensor([[2.0, 0, 6, 8], [4, 0, 8, 8]])
    targets = mask_targets([masks, masks[:0]], [boxes, boxes[:0]], [torch.tensor([1, 1]), torch.tensor([]).long()], 4)
    assert targets.shape == (2, 4, 4)
    assert targets[0].mean(0)[[0, 3]].tolist() == [0, 1]
    assert targets[1].min() == 1


@pytest.mark.parametrize("count", [0, 3, 7])
def test_masks_are_the_same_however_many_are_computed_together(count):
    spec = ModelSpec.tiny(num_classes=4)
    torch.manual_seed(0)
    _, predictor = build_mask_head(spec, 16, 14)
    features, labels = torch.rand(count, spec.mask_head_channels[-1], 14, 14), torch.arange(count) % 4 + 1
    with torch.inference_mode():
        expected = log_mask_probabilities(spec, predictor(features), labels)[0].exp()
        probabilities = mask_head.mask_probabilities(spec, predictor, features, labels, at_once=3)
    assert probabilities.shape == (count, 28, 28)
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(num_classes=3, mask_head_channels=(16, 16), mask_deconv_channels=16),
        ModelSpec(num_classes=3, mask_head_channels=(16,), mask_deconv_channels=16, mask_output_size=56),
        ModelSpec(num_classes=3, mask_head_channels=(), mask_deconv_channels=16, mask_output_size=14),
        ModelSpec(num_classes=3, mask_head="conv5", mask_head_channels=(16,) * 5, mask_deconv_channels=16),
        ModelSpec(num_classes=3, mask_head="mlp", mask_head_channels=(32, 32)),
    ],
    ids=["fcn, 28", "fcn, 56", "fcn without convolutions, 14", "conv5, 28", "mlp, 28"],
)
def test_every_head_gives_logits_of_the_stated_size(spec):
    roi_size = mask_roi_size(spec)
    head, predictor = build_mask_head(spec, 8, roi_size)
    for count in (0, 3):
        logits = predictor(head(torch.rand(count, 8, roi_size, roi_size)))
        assert logits.shape == (count, 4, spec.mask_output_size, spec.mask_output_size)


def test_a_fresh_head_gives_one_half_everywhere():
    torch.manual_seed(0)
    spec = ModelSpec(num_classes=3, mask_deconv_channels=64, mask_head_channels=(64, 64))
    head, predictor = build_mask_head(spec, 64, 14)
    with torch.no_grad():
        features = head(torch.randn(4, 64, 14, 14))
        probabilities = mask_head.mask_probabilities(spec, predictor, features, torch.tensor([1, 2, 3, 1]))
    assert (probabilities - 0.5).abs().max() < 0.05
