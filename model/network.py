"""Mask R-CNN network: image transform, backbone, RPN and RoI heads; torchvision's contract and state dict names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.backbone import build_backbone
from model.dense_parts import DenseParts, MapsPart, to_feature_maps
from model.heads.roi_heads import RoIHeads
from model.heads.rpn import NonFiniteOutput, ProposalNetwork, build_rpn
from model.spec import ModelSpec
from model.training.assignment import separate_ignored
from model.transform import ImageTransform
from model.weights.loading import WeightsReport, load_weights

__all__ = ["MaskRCNN", "NonFiniteOutput", "build_model", "check_targets"]


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al., 2017) with torchvision's contract and names, so that state dicts load both ways.

    In training, ``model(images, targets)`` gives the loss terms by name; their sum is the total. `images` is a list of
    float [C, H, W] tensors in 0..1, of any sizes. Each target has

    - `boxes` float32 [N, 4]: XYXY pixels of its image, ``0 <= x1 < x2 <= W``, ``0 <= y1 < y2 <= H``;
    - `labels` int64 [N] in 1..K;
    - `masks` uint8 [N, H, W], 0 or 1;
    - `keypoints` float32 [N, P, 3] (x, y, visible), where there is a keypoint head;
    - optionally `iscrowd` [N]: not 0 for instances that are ignored regions;
    - optionally `ignore_boxes` float32 [M, 4]: more ignored regions, in which nothing is a negative;
    - optionally `labelled_classes` int64 [L]: the classes that were annotated on this image; absent: all. An instance
      of another class is a positive all the same, and its class is no negative elsewhere on the image.

    N may be 0: such an image is all background.

    In evaluation, ``model(images)`` gives a list of dicts, best score first: `boxes` float32 [N, 4], `labels` int64
    [N], `scores` float32 [N], `masks` float32 [N, 1, H, W] probabilities, with a keypoint head also `keypoints`
    [N, P, 3] and `keypoints_scores` [N, P]; all in pixels of the original image.
    """

    # Types of the submodules, which nn.Module declares as plain modules.
    transform: ImageTransform
    backbone: Any
    rpn: ProposalNetwork
    roi_heads: RoIHeads

    def __init__(
        self,
        *,
        transform: ImageTransform,
        backbone: nn.Module,
        rpn: ProposalNetwork,
        roi_heads: RoIHeads,
        proposals: str = "rpn",
        num_classes: int,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.proposals = proposals
        self.num_classes = num_classes
        self.weights_report: WeightsReport | None = None
        # The dtype in which a prediction's feature maps are computed; `model.inference.fuse` sets another.
        self.compute_dtype = torch.float32

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if self.training:
            return self.losses(images, targets)
        if targets is not None and self.proposals == "ground_truth":
            raise ValueError("proposals='ground_truth' is for training only: a prediction takes no targets")
        image_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        detections, resized_sizes = self.detect(images, image_sizes)
        return self.transform.postprocess(detections, resized_sizes, image_sizes)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> dict[str, Tensor]:
        """The loss terms by name.

        Raises:
            ValueError: No targets, or a target that does not fit its image or the network.
        """
        has_masks = self.roi_heads.has_mask()
        targets = check_targets(images, targets, num_classes=self.num_classes, has_masks=has_masks)
        batch, targets = self.transform(images, [separate_ignored(target) for target in targets])
        features = to_feature_maps(self.backbone(batch.tensors))
        proposals, rpn_losses = self.rpn(batch, features, targets)
        if self.proposals == "ground_truth":
            # The RoI heads add the true boxes to the proposals: where there are any, the RPN's are dropped.
            proposals = [p[:0] if len(t["boxes"]) else p for p, t in zip(proposals, targets)]
        _, roi_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {**roi_losses, **rpn_losses}

    def dense_parts(self) -> DenseParts:
        """The network's own layers as parts, which share its weights."""
        heads = self.roi_heads
        return DenseParts(
            MapsPart(self.backbone, self.rpn.head), heads.box_part(), heads.mask_part(), heads.keypoint_part()
        )

    def detect(
        self, images: Iterable[Tensor], sizes: Sequence[tuple[int, int]], parts: DenseParts | None = None
    ) -> tuple[list[dict[str, Tensor]], list[tuple[int, int]]]:
        """Detections in pixels of the resized images, and the (height, width) of those.

        `sizes` are the (height, width) of the original images, of which `images` may be smaller versions. `masks` are
        float32 [N, 1, M, M] probabilities over the box, not pasted into the image. `parts` run in place of the
        network's own layers.

        Raises:
            NonFiniteOutput: The network gave NaN or infinity.
        """
        parts = parts or self.dense_parts()
        batch = self.transform.for_prediction(images, sizes)
        outputs = parts.maps(batch.tensors.to(self.compute_dtype))
        count = len(outputs) // 3
        maps, logits, offsets = (list(outputs[start : start + count]) for start in range(0, 3 * count, count))
        proposals = self.rpn.propose(batch, maps, logits, offsets)
        table = self.roi_heads.to_pool_from({str(index): level for index, level in enumerate(maps)})
        del outputs, maps, logits, offsets  # the table takes their place in memory
        return self.roi_heads.detect(table, proposals, batch.image_sizes, parts), batch.image_sizes


def check_targets(
    images: list[Tensor], targets: list[dict[str, Tensor]] | None, *, num_classes: int, has_masks: bool
) -> list[dict[str, Tensor]]:
    """The targets, if there is one for each image and each fits.

    Raises:
        ValueError: One does not; the message names its position in the batch, what is wrong and what is allowed.
    """
    if targets is None or len(targets) != len(images):
        raise ValueError(f"{len(images)} images need as many targets, not {len(targets or ())}")
    for index, (image, target) in enumerate(zip(images, targets)):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"target {index}: boxes are {boxes.dtype} {list(boxes.shape)}; allowed is float [N, 4]")
        if labels.dtype != torch.int64 or len(labels) != len(boxes):
            raise ValueError(
                f"target {index}: labels are {labels.dtype} {list(labels.shape)}; allowed is int64 [{len(boxes)}]"
            )
        if has_masks and "masks" not in target:
            raise ValueError(f"target {index}: there are no masks, and the network has a mask head")
        mask_shape = (len(boxes), *image.shape[-2:])
        if "masks" in target and tuple(target["masks"].shape) != mask_shape:
            raise ValueError(
                f"target {index}: masks are {list(target['masks'].shape)}; the image and boxes need {list(mask_shape)}"
            )
        if not len(boxes):
            continue
        empty = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if empty.any():
            box = [round(value, 3) for value in boxes[empty][0].tolist()]
            raise ValueError(f"target {index}: box {box} has no area")
        if labels.min() < 1 or labels.max() > num_classes:
            raise ValueError(
                f"target {index}: labels from {labels.min()} to {labels.max()}; allowed is 1 to {num_classes}"
            )
    return targets


def build_model(spec: ModelSpec, *, weights: str | None = None, backbone: nn.Module | None = None) -> MaskRCNN:
    """The network of a spec, in training mode.

    Args:
        spec: What to build.
        weights: None for random ones; else "coco", "imagenet" or a file, see `model.weights.loading`. The network's
            `weights_report` then lists which tensors were loaded and which were left out.
        backbone: Used in place of the spec's. It gives one map, a list or a dict of maps, finest first, and has the
            attributes `out_channels` (of every map) and `strides` (one for each map).

    Raises:
        ValueError: ``spec.num_classes`` is 0, or the weights cannot be fetched or read or do not fit.
    """
    if spec.num_classes < 1:
        raise ValueError("num_classes=0: a network needs at least one class; take as many as the data has")
    body: Any = backbone
    res5 = None
    if body is None:
        body, res5 = build_backbone(spec)
    num_roi_maps = getattr(body, "num_roi_maps", len(body.strides))
    model = MaskRCNN(
        transform=ImageTransform(spec),
        backbone=body,
        rpn=build_rpn(spec, body.out_channels, body.strides),
        roi_heads=RoIHeads(spec, in_channels=body.out_channels, strides=body.strides[:num_roi_maps], res5=res5),
        proposals=spec.proposals,
        num_classes=spec.num_classes,
    )
    if weights is not None:
        model.weights_report = load_weights(model, spec, weights)
    return model
