"""The network: backbone, region proposals, heads."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from model.backbone import build_backbone
from model.spec import ModelSpec
from model.transform import ImageTransform


class MaskRCNN(nn.Module):
    """Mask R-CNN with torchvision's contract (its names, so that state dicts are exchanged both ways).

    In training, ``model(images, targets)`` gives a dict of scalar losses whose sum is the total. `images` is a list of
    float [C, H, W] tensors in 0..1, of any sizes; each target has `boxes` float32 [N, 4] (XYXY pixels of its image,
    ``0 <= x1 < x2 <= W``), `labels` int64 [N] in 1..K, `masks` uint8 [N, H, W], and `keypoints` float32 [N, P, 3] where
    there is a keypoint head. N may be 0: such an image is a negative.

    In evaluation, ``model(images)`` gives a list of dicts: `boxes` float32 [N, 4], `labels` int64 [N], `scores` float32
    [N], `masks` float32 [N, 1, H, W] probabilities (and `keypoints` [N, P, 3], `keypoints_scores` [N, P]), all in the
    coordinates of the image as it was given.
    """

    def __init__(self, *, transform: nn.Module, backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if self.training:
            return self.losses(images, targets)
        image_sizes = [tuple(image.shape[-2:]) for image in images]
        detections, resized_sizes = self.detect(images)
        return self.transform.postprocess(detections, resized_sizes, image_sizes)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> dict[str, Tensor]:
        """The loss terms by name.

        Raises:
            ValueError: No targets, or a target that does not fit its image.
        """
        check_targets(images, targets)
        batch, targets = self.transform(images, targets)
        features = self._features(batch.tensors)
        proposals, rpn_losses = self.rpn(batch, features, targets)
        _, roi_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {**roi_losses, **rpn_losses}

    def detect(self, images: list[Tensor]) -> tuple[list[dict[str, Tensor]], list[tuple[int, int]]]:
        """Detections in the coordinates of the resized images, and the (height, width) of those.

        `masks` are float32 [N, 1, M, M] probabilities over the box, not pasted into the image.
        """
        batch, _ = self.transform(images)
        features = self._features(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        detections, _ = self.roi_heads(features, proposals, batch.image_sizes)
        return detections, batch.image_sizes

    def _features(self, tensors: Tensor) -> dict[str, Tensor]:
        features = self.backbone(tensors)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def check_targets(images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> None:
    """Check that there is one target for each image, with boxes of positive size.

    Raises:
        ValueError: Naming the image's place in the batch and what is wrong.
    """
    if targets is None or len(targets) != len(images):
        raise ValueError(f"{len(images)} images need as many targets, not {'none' if targets is None else len(targets)}")
    for index, target in enumerate(targets):
        boxes = target["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"target {index}: boxes must have the shape [N, 4], not {list(boxes.shape)}")
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        if empty.any():
            box = [round(value, 3) for value in boxes[empty][0].tolist()]
            raise ValueError(f"target {index}: box {box} has no area")


def build_model(spec: ModelSpec, *, weights: str | None = None) -> MaskRCNN:
    """The network of a spec, in training mode, with fresh random weights.

    Raises:
        ValueError: ``spec.num_classes`` is 0.
    """
    if spec.num_classes < 1:
        raise ValueError("num_classes=0: a network needs at least one class; take as many as the data has")
    if weights is not None:
        raise ValueError(f"weights={weights!r}: allowed is None")
    backbone = build_backbone(spec)
    return MaskRCNN(
        transform=ImageTransform(spec),
        backbone=backbone,
        rpn=_build_rpn(spec, backbone.out_channels),
        roi_heads=_build_roi_heads(spec, backbone.out_channels),
    )


def _build_rpn(spec: ModelSpec, in_channels: int) -> nn.Module:
    anchors = AnchorGenerator(spec.anchor_sizes, (spec.anchor_ratios,) * len(spec.anchor_sizes))
    return RegionProposalNetwork(
        anchors,
        RPNHead(in_channels, anchors.num_anchors_per_location()[0]),
        spec.rpn_foreground_iou,
        spec.rpn_background_iou,
        spec.rpn_batch_size_per_image,
        spec.rpn_positive_fraction,
        {"training": spec.rpn_pre_nms_train, "testing": spec.rpn_pre_nms_test},
        {"training": spec.rpn_post_nms_train, "testing": spec.rpn_post_nms_test},
        spec.rpn_nms_threshold,
    )


def _build_roi_heads(spec: ModelSpec, in_channels: int) -> nn.Module:
    num_outputs = spec.num_classes + 1
    levels = ["0", "1", "2", "3"]
    heads = RoIHeads(
        MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        TwoMLPHead(in_channels * 7 * 7, spec.box_head_channels),
        FastRCNNPredictor(spec.box_head_channels, num_outputs),
        spec.box_foreground_iou,
        spec.box_background_iou,
        spec.box_batch_size_per_image,
        spec.box_positive_fraction,
        spec.box_regression_weights,
        spec.score_threshold,
        spec.nms_threshold,
        spec.max_detections,
    )
    mask_channels = spec.mask_head_channels
    heads.mask_roi_pool = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
    heads.mask_head = MaskRCNNHeads(in_channels, mask_channels, 1)
    heads.mask_predictor = MaskRCNNPredictor(mask_channels[-1], mask_channels[-1], num_outputs)
    if spec.num_keypoints:
        heads.keypoint_roi_pool = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
        heads.keypoint_head = KeypointRCNNHeads(in_channels, spec.keypoint_head_channels)
        heads.keypoint_predictor = KeypointRCNNPredictor(spec.keypoint_head_channels[-1], spec.num_keypoints)
    return heads
