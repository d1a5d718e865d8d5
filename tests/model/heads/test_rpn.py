"""Region proposal network: number and position of its proposals, its head, its loss terms."""

import pytest
import torch

from model.heads.rpn import NonFiniteOutput
from model.spec import BOX_LOSSES, ModelSpec
from model.training import losses
from tests.model.small_trainings import QUICK, build, samples

SPEC = ModelSpec.tiny(num_classes=2, **QUICK)


@pytest.mark.parametrize("width", [32, 512])
def test_the_head_has_the_width_of_the_spec(width):
    head = build(SPEC.replace(rpn_channels=width)).rpn.head
    assert head.conv[0][0].out_channels == head.cls_logits.in_channels == head.bbox_pred.in_channels == width


def proposals_of(model):
    images, _ = samples()
    with torch.no_grad():
        batch, _ = model.transform(images)
        return model.rpn(batch, model.backbone(batch.tensors))[0], batch.image_sizes


def test_proposals_are_filled_up_to_the_least_number_with_suppressed_ones():
    spec = SPEC.replace(rpn_nms_threshold=0.0, rpn_post_nms_test=100)
    model = build(spec).eval()
    kept, _ = proposals_of(model)
    assert all(0 < len(boxes) < 40 for boxes in kept)
    model.rpn.spec = spec.replace(rpn_min_proposals=40)
    filled, sizes = proposals_of(model)
    for before, after, (height, width) in zip(kept, filled, sizes):
        assert len(after) == 40 and torch.equal(after[: len(before)], before)
        assert len(after.unique(dim=0)) == 40
        assert (after >= 0).all() and (after <= torch.tensor([width, height, width, height])).all()


def test_filling_up_stops_when_the_anchors_run_out():
    model = build(SPEC.replace(rpn_min_proposals=10**6)).eval()
    boxes, _ = proposals_of(model)
    assert all(100 < len(image_boxes) < 10**6 for image_boxes in boxes)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_the_box_term_sums_over_positive_anchors_and_divides_by_all_sampled_ones(kind):
    rpn = build(SPEC.replace(rpn_box_loss=kind, rpn_box_loss_weight=3.0)).rpn
    anchors = torch.tensor([[0.0, 0, 2, 2], [5, 5, 9, 9], [0, 0, 4, 4]])
    true_boxes = torch.tensor([[1.0, -1, 3, 3], [0, 0, 1, 1], [0, 0, 1, 1]])
    terms = rpn.losses(
        torch.zeros(3, 1), torch.zeros(3, 4), [torch.tensor([1.0, 0]), torch.tensor([-1.0])], anchors, true_boxes
    )
    box_loss = losses.box_loss(kind, rpn.box_coder, torch.zeros(1, 4), anchors[:1], true_boxes[:1], beta=1 / 9)
    assert terms["loss_rpn_box_reg"].item() == pytest.approx(3 * box_loss.item() / 2, rel=1e-5)
    # Two logits of zero: ln 2 each.
    assert terms["loss_objectness"].item() == pytest.approx(0.693147, rel=1e-5)


def test_scores_that_are_not_finite_are_refused():
    model = build(SPEC).eval()
    with torch.no_grad():
        model.rpn.head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput, match="region scores"):
        model(samples()[0])
