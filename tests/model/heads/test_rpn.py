"""Region proposals: anchors, how many come out, what the heads are trained on."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from model.heads.anchors import build_anchors
from model.inference.predictor import NonFiniteOutput
from model.spec import BOX_LOSSES, ModelSpec
from model.training import losses
from tests.model.small_trainings import QUICK, build, samples

SPEC = ModelSpec.tiny(num_classes=2, **QUICK)


def anchors_of(spec, size, strides, batch=1):
    features = [torch.zeros(batch, 1, -(-size[0] // s), -(-size[1] // s)) for s in strides]
    return build_anchors(spec, strides)(ImageList(torch.zeros(batch, 3, *size), [size] * batch), features)


def test_exact_anchors_by_hand():
    spec = ModelSpec(neck="c5", anchor_sizes=((32,),), anchor_ratios=(0.5, 1.0), anchor_style="detectron2")
    first, square = anchors_of(spec, (32, 64), (32,))[0][:2].tolist()
    # Area 32^2, height / width 1/2: 45.25 x 22.63 around (0, 0).
    assert first == pytest.approx([-22.627, -11.314, 22.627, 11.314], abs=1e-3)
    assert square == [-16, -16, 16, 16]


def test_exact_anchors_keep_the_stride_where_the_size_is_no_multiple():
    sizes = ((32,), (64,), (128,), (256,), (512,))
    for style, step in (("detectron2", 64), ("torchvision", 352 // 6)):
        spec = ModelSpec(anchor_sizes=sizes, anchor_ratios=(1.0,), anchor_style=style)
        # 352 px: 11 places of stride 32, but 6 of stride 64.
        coarse = anchors_of(spec, (352, 352), (4, 8, 16, 32, 64))[0][-36:]
        assert (coarse[1] - coarse[0]).tolist() == [step, 0, step, 0]


def test_nine_anchors_at_a_place():
    spec = ModelSpec(anchor_sizes=tuple((s, s * 1.26, s * 1.59) for s in (32, 64, 128, 256, 512)))
    assert build_anchors(spec, (4, 8, 16, 32, 64)).num_anchors_per_location() == [9] * 5


@pytest.mark.parametrize("width", [32, 512])
def test_head_width(width):
    head = build(SPEC.replace(rpn_channels=width)).rpn.head
    assert head.conv[0][0].out_channels == head.cls_logits.in_channels == head.bbox_pred.in_channels == width


def proposals_of(model):
    images, _ = samples()
    with torch.no_grad():
        batch, _ = model.transform(images)
        return model.rpn(batch, model.backbone(batch.tensors))[0], batch.image_sizes


def test_suppression_leaves_few_and_the_least_number_is_filled_up():
    few = SPEC.replace(rpn_nms_threshold=0.0, rpn_post_nms_test=100)
    model = build(few).eval()
    plain, _ = proposals_of(model)
    assert all(0 < len(boxes) < 40 for boxes in plain)
    model.rpn.spec = few.replace(rpn_min_proposals=40)
    filled, sizes = proposals_of(model)
    for before, after, (height, width) in zip(plain, filled, sizes):
        assert len(after) == 40 and torch.equal(after[: len(before)], before)
        assert len(after.unique(dim=0)) == 40
        assert (after >= 0).all() and (after <= torch.tensor([width, height, width, height])).all()


def test_no_more_than_there_are():
    model = build(SPEC.replace(rpn_min_proposals=10**6)).eval()
    boxes, _ = proposals_of(model)
    assert all(100 < len(image_boxes) < 10**6 for image_boxes in boxes)


def test_true_boxes_are_the_proposals_where_there_are_any():
    model = build(SPEC.replace(proposals="ground_truth")).train()
    seen = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[1]))
    images, targets = samples()
    targets[1] = {name: value[:0] for name, value in targets[1].items()}
    model(images, targets)
    # The short side has 64 px already: the image is not resized.
    assert sorted(seen[0][0].tolist()) == sorted(targets[0]["boxes"].tolist())
    # The second image has none: the RPN's, all background.
    assert len(seen[0][1]) > 1


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_the_box_term_is_of_the_positive_anchors_over_all_that_were_sampled(kind):
    rpn = build(SPEC.replace(rpn_box_loss=kind, rpn_box_loss_weight=3.0)).rpn
    anchors = torch.tensor([[0.0, 0, 2, 2], [5, 5, 9, 9], [0, 0, 4, 4]])
    true_boxes = torch.tensor([[1.0, -1, 3, 3], [0, 0, 1, 1], [0, 0, 1, 1]])
    terms = rpn.losses(
        torch.zeros(3, 1), torch.zeros(3, 4), [torch.tensor([1.0, 0]), torch.tensor([-1.0])], anchors, true_boxes
    )
    one = losses.box_loss(kind, rpn.box_coder, torch.zeros(1, 4), anchors[:1], true_boxes[:1], beta=1 / 9)
    assert terms["loss_rpn_box_reg"].item() == pytest.approx(3 * one.item() / 2, rel=1e-5)
    # Two logits of zero: ln 2 each.
    assert terms["loss_objectness"].item() == pytest.approx(0.693147, rel=1e-5)


def test_sampling_keeps_the_proportion():
    """Of 16 RoIs at most a quarter is positive."""
    model = build(SPEC).train()
    images, targets = samples()
    _, moved = model.transform(images, targets)
    many = [target["boxes"].repeat(30, 1) + torch.rand(60, 4) for target in moved]
    drawn = model.roi_heads.sample(many, moved)
    for labels, boxes in zip(drawn.labels, drawn.boxes):
        assert (labels > 0).sum() == 4
        assert len(boxes) == len(labels)


def test_scores_that_are_not_finite_are_no_empty_result():
    model = build(SPEC).eval()
    with torch.no_grad():
        model.rpn.head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput, match="region scores"):
        model(samples()[0])
    model = build(SPEC).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteOutput, match="class scores"):
        model(samples()[0])


def test_weights_scale_their_terms():
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


def test_no_proposal_gives_no_detection():
    model = build(SPEC).eval()
    images, _ = samples()
    with torch.no_grad():
        batch, _ = model.transform(images)
        features = model.backbone(batch.tensors)
        some = torch.tensor([[0.0, 0, 30, 30]])
        found = model.roi_heads.detect(features, [some[:0], some], batch.image_sizes)
        none = model.roi_heads.detect(features, [some[:0], some[:0]], batch.image_sizes)
    assert len(found[0]["scores"]) == 0 and len(found[1]["scores"]) > 0
    assert found[0]["masks"].shape == none[0]["masks"].shape == (0, 1, 28, 28)
    assert none[1]["boxes"].shape == (0, 4)
