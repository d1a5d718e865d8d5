"""What the tests of the network share: drawn images with targets, and one training step looked at closely."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network import build_model
from model.spec import ModelSpec

# Settings that make any network quick on images of 64 px; the layers that are being tested stay as they are.
QUICK = {
    "image_min_size": 64,
    "image_max_size": 96,
    "rpn_pre_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_train": 20,
    "rpn_post_nms_test": 10,
    # All anchors take part, so that every map of the pyramid learns.
    "rpn_batch_size_per_image": 4096,
    "box_batch_size_per_image": 16,
    "max_detections": 5,
    "score_threshold": 0.0,
}


def samples(num_channels: int = 3, num_keypoints: int = 0, num_classes: int = 2) -> tuple[list[Tensor], list[dict]]:
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
            places = torch.rand(2, num_keypoints, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
            seen = torch.full((2, num_keypoints, 1), 2.0)
            target["keypoints"] = torch.cat([boxes[:, None, :2] + places, seen], dim=2)
        images.append(torch.rand(num_channels, height, width, generator=generator))
        targets.append(target)
    return images, targets


def build(spec: ModelSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(spec)


def check_training_step(model: nn.Module, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
    """Losses of one step, checked: finite, and a finite gradient in every parameter that is to be trained.

    "Has a gradient" means that it is not all zero: a parameter whose gradient is zero by construction is not trained.
    """
    model.train()
    losses = model(images, targets)
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
            assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"
        else:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
    return losses


def check_prediction(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """One prediction, checked: shapes, ranges, order."""
    model.eval()
    with torch.no_grad():
        found = model(images)
    assert len(found) == len(images)
    for one, image in zip(found, images):
        height, width = image.shape[-2:]
        count = len(one["scores"])
        assert count > 0
        assert one["boxes"].shape == (count, 4) and one["labels"].shape == (count,)
        assert (one["boxes"] >= 0).all() and (one["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
        assert one["labels"].min() >= 1 and one["labels"].max() <= model.num_classes
        assert (one["scores"].diff() <= 0).all() and 0 <= one["scores"].min() and one["scores"].max() <= 1
        if "masks" in one:
            assert one["masks"].shape == (count, 1, height, width)
            assert 0 <= one["masks"].min() and one["masks"].max() <= 1
    return found
