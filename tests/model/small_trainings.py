"""Helpers of the network's tests: generated images with targets, and checks of one training step and one prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.network import MaskRCNN, build_model
from model.spec import ModelSpec

# Settings that make any network quick on images of 64 px; the layers that are being tested stay as they are.
QUICK: dict[str, Any] = {
    "image_min_size": 64,
    "image_max_size": 96,
    "rpn_pre_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_train": 20,
    "rpn_post_nms_test": 10,
    # All anchors are sampled, so that every map of the pyramid gets a gradient.
    "rpn_batch_size_per_image": 4096,
    "box_batch_size_per_image": 16,
    "max_detections": 5,
    "score_threshold": 0.0,
}


# Anchors of three sizes for the necks that have one map.
ONE_MAP: dict[str, Any] = {"anchor_sizes": ((16, 32, 64),), "rpn_channels": 32}


def backbone_spec(backbone: str, **changes: Any) -> ModelSpec:
    """The tiny network's spec with another backbone, normalised by plain batch norm."""
    return ModelSpec.tiny(num_classes=2, **{"backbone": backbone, "norm": "batch", **changes})


def samples(
    num_channels: int = 3, num_keypoints: int = 0, num_classes: int = 2
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes with two rectangles each."""
    generator = torch.Generator().manual_seed(5)
    images, targets = [], []
    for height, width in ((64, 80), (72, 64)):
        boxes = torch.tensor([[6.0, 8, 30, 40], [28, 20, 60, 50]])
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        target = {"boxes": boxes, "labels": torch.tensor([1, num_classes]), "masks": masks}
        if num_keypoints:
            offsets = torch.rand(2, num_keypoints, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
            visibility = torch.full((2, num_keypoints, 1), 2.0)
            target["keypoints"] = torch.cat([boxes[:, None, :2] + offsets, visibility], dim=2)
        images.append(torch.rand(num_channels, height, width, generator=generator))
        targets.append(target)
    return images, targets


def build(spec: ModelSpec, seed: int = 0) -> MaskRCNN:
    """The network of a spec with random weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return build_model(spec)


def check_training_step(model: MaskRCNN, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of one step, checked: finite, and a finite gradient in every parameter that is to be trained.

    "Has a gradient" means that it is not all zero: a parameter whose gradient is zero by construction is not trained.
    """
    model.train()
    losses: dict[str, Tensor] = model(images, targets)
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
            assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"
        else:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
    return losses


def check_prediction(model: MaskRCNN, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """The detections of one prediction, checked: shapes, ranges, order."""
    model.eval()
    with torch.no_grad():
        detections = model(images)
    assert len(detections) == len(images)
    for detection, image in zip(detections, images):
        height, width = image.shape[-2:]
        boxes, labels, scores = detection["boxes"], detection["labels"], detection["scores"]
        count = len(scores)
        assert count > 0
        assert boxes.shape == (count, 4) and labels.shape == (count,)
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert labels.min() >= 1 and labels.max() <= model.num_classes
        assert (scores.diff() <= 0).all() and 0 <= scores.min() and scores.max() <= 1
        if "masks" in detection:
            assert detection["masks"].shape == (count, 1, height, width)
            assert 0 <= detection["masks"].min() and detection["masks"].max() <= 1
    return detections
