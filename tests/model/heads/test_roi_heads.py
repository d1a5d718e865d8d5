"""RoI heads: sampling of RoIs and detections from proposals."""

import pytest
import torch

from model.heads.rpn import NonFiniteOutput
from model.spec import ModelSpec
from tests.model.small_trainings import QUICK, build, samples

SPEC = ModelSpec.tiny(num_classes=2, **QUICK)


def test_at_most_a_quarter_of_the_16_sampled_rois_is_positive():
    model = build(SPEC).train()
    images, targets = samples()
    _, resized = model.transform(images, targets)
    proposals = [target["boxes"].repeat(30, 1) + torch.rand(60, 4) for target in resized]
    sampled = model.roi_heads.sample(proposals, resized)
    for labels, boxes in zip(sampled.labels, sampled.boxes):
        assert (labels > 0).sum() == 4
        assert len(boxes) == len(labels)


def test_no_proposal_gives_no_detection():
    model = build(SPEC).eval()
    images, _ = samples()
    with torch.no_grad():
        batch, _ = model.transform(images)
        features = model.backbone(batch.tensors)
        proposal, parts = torch.tensor([[0.0, 0, 30, 30]]), model.dense_parts()
        mixed = model.roi_heads.detect(features, [proposal[:0], proposal], batch.image_sizes, parts)
        empty = model.roi_heads.detect(features, [proposal[:0], proposal[:0]], batch.image_sizes, parts)
    assert len(mixed[0]["scores"]) == 0 and len(mixed[1]["scores"]) > 0
    assert mixed[0]["masks"].shape == empty[0]["masks"].shape == (0, 1, 28, 28)
    assert empty[1]["boxes"].shape == (0, 4)


def test_scores_that_are_not_finite_are_refused():
    model = build(SPEC).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteOutput, match="class scores"):
        model(samples()[0])
