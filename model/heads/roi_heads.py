"""RoI heads: box, mask and keypoint branches over pooled features; sampling, losses and detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.backbones.backbone import ResidualStage
from model.dense_parts import BoxPart, DenseParts, MaskPart
from model.heads.box_head import build_box_head, split_by_class
from model.heads.boxes import clip_to_sizes, decode_boxes
from model.heads.mask_head import (
    build_mask_head,
    log_mask_probabilities,
    mask_roi_size,
    mask_targets,
)
from model.heads.nms import UNUSABLE, suppress_images
from model.heads.roi_align_cpu import MapTable
from model.heads.roi_pooler import RoIPooler
from model.heads.rpn import NonFiniteOutput
from model.spec import ModelSpec
from model.training import losses
from model.training.assignment import allowed_classes, drop_ignored
from model.transfers import row_of_each, to_device, to_host
from model.vision import KeypointRCNNHeads, KeypointRCNNPredictor, keypointrcnn_inference, keypointrcnn_loss
from model.vision import RoIHeads as TorchvisionRoIHeads

_C4_ROI_SIZE = 14
BOX_ROI_SIZE = 7
_KEYPOINT_ROI_SIZE = 14
# Boxes with a side below this, in resized pixels, are dropped (torchvision's value).
_SMALLEST_BOX_PX = 1e-2


@dataclass(frozen=True)
class Samples:
    """The RoIs sampled for a training step, one entry for each image.

    Attributes:
        boxes: XYXY [n, 4], resized pixels.
        labels: int64 [n], 0 background.
        matches: int64 [n], index of the true object of a RoI with label > 0; meaningless for background.
        true_boxes: XYXY [n, 4] of those objects.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    matches: list[Tensor]
    true_boxes: list[Tensor]

    def positives(self) -> Samples:
        """The samples without those of the background; an image may have none."""
        positive = [torch.where(labels > 0)[0] for labels in self.labels]
        return Samples(
            *(
                [values[index] for values, index in zip(field, positive)]
                for field in (self.boxes, self.labels, self.matches, self.true_boxes)
            )
        )


class RoIHeads(TorchvisionRoIHeads):
    """Box, mask and keypoint heads over shared features; with neck "c4" after a shared last stage (`res5`)."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        in_channels: int,
        strides: tuple[int, ...],
        res5: ResidualStage | None = None,
    ) -> None:
        box_roi_size = _C4_ROI_SIZE if res5 is not None else BOX_ROI_SIZE
        head_channels = res5.out_channels if res5 is not None else in_channels
        super().__init__(
            RoIPooler(spec, output_size=box_roi_size, strides=strides),
            *build_box_head(spec, head_channels, box_roi_size),
            spec.box_foreground_iou,
            spec.box_background_iou,
            spec.box_batch_size_per_image,
            spec.box_positive_fraction,
            spec.box_regression_weights,
            spec.score_threshold,
            spec.nms_threshold,
            spec.max_detections,
        )
        self.spec = spec
        # Lowest scores of the classes, [K]; None = that of all is score_thresh. As class_weights, no part of a network.
        self.class_score_thresh: Tensor | None
        self.register_buffer("class_score_thresh", None, persistent=False)
        self.res5 = res5 if res5 is not None else nn.Identity()
        # Weights of the classes in the classification loss, [K + 1], background first; None = all are 1. They belong to
        # a training and not to the network, so that no checkpoint holds them.
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        if spec.mask_head != "none":
            self._add_mask_head(head_channels, strides)
        if spec.num_keypoints:
            widths = spec.keypoint_head_channels
            self.keypoint_roi_pool = RoIPooler(spec, output_size=_KEYPOINT_ROI_SIZE, strides=strides)
            self.keypoint_head = KeypointRCNNHeads(in_channels, widths)
            self.keypoint_predictor = KeypointRCNNPredictor(widths[-1], spec.num_keypoints)

    def _add_mask_head(self, in_channels: int, strides: tuple[int, ...]) -> None:
        roi_size = mask_roi_size(self.spec)
        head_size = roi_size
        if self.spec.neck == "c4":
            # The shared stage halves the side.
            roi_size, head_size = _C4_ROI_SIZE, _C4_ROI_SIZE // 2
        self.mask_roi_pool = RoIPooler(self.spec, output_size=roi_size, strides=strides)
        self.mask_head, self.mask_predictor = build_mask_head(self.spec, in_channels, head_size)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """No detections, and the loss terms by name: training only, see `detect`."""
        assert targets is not None, "MaskRCNN.losses has checked them"
        samples = self.sample(proposals, targets)
        positives = samples.positives()
        logits, offsets = self.box_part()(self.box_roi_pool(features, samples.boxes))
        terms = self.box_losses(logits, offsets, samples, targets)
        if self.has_mask():
            rois = self.mask_roi_pool(features, positives.boxes)
            mask_logits = self.mask_predictor(self.mask_head(self.res5(rois)))
            terms |= self.mask_losses(mask_logits, positives, targets)
        if (keypoint_part := self.keypoint_part()) is not None:
            heat_maps = keypoint_part(self.keypoint_roi_pool(features, positives.boxes))
            terms |= self.keypoint_losses(heat_maps, positives, targets)
        return [], terms

    def box_part(self) -> BoxPart:
        """The layers that give class logits and offsets of pooled RoIs."""
        return BoxPart(self.res5, self.box_head, self.box_predictor)

    def mask_part(self) -> MaskPart | None:
        """The layers that give masks of pooled RoIs and their labels; None without a mask head."""
        return MaskPart(self.spec, self.res5, self.mask_head, self.mask_predictor) if self.has_mask() else None

    def keypoint_part(self) -> nn.Module | None:
        """The layers that give heat maps of pooled RoIs; None without a keypoint head."""
        return nn.Sequential(self.keypoint_head, self.keypoint_predictor) if self.has_keypoint() else None

    def to_pool_from(self, features: dict[str, Tensor]) -> dict[str, Tensor] | MapTable:
        """The maps in the form that a prediction's RoIs are pooled from fastest: tables where possible."""
        return self.box_roi_pool.table(features) or features

    def detect(
        self,
        features: dict[str, Tensor] | MapTable,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        parts: DenseParts,
    ) -> list[dict[str, Tensor]]:
        """Detections of each image: classified and suppressed proposals, then masks and keypoints of those kept.

        Boxes are XYXY, resized pixels; `masks` are [N, 1, M, M] probabilities over the box.

        Raises:
            NonFiniteOutput: NaN or infinity among the class scores or boxes.
        """
        logits, offsets = parts.box(self.box_roi_pool(features, proposals))
        detections = self.postprocess(logits, offsets, proposals, image_shapes)
        boxes = [detection["boxes"] for detection in detections]
        if parts.mask is not None:
            labels = torch.cat([detection["labels"] for detection in detections])
            inside = parts.mask(self.mask_roi_pool(features, boxes), labels)
            for detection, masks in zip(detections, inside[:, None].split([len(b) for b in boxes])):
                detection["masks"] = masks
        if parts.keypoint is not None:
            heat_maps = parts.keypoint(self.keypoint_roi_pool(features, boxes))
            for detection, keypoints, scores in zip(detections, *keypointrcnn_inference(heat_maps.float(), boxes)):
                detection["keypoints"], detection["keypoints_scores"] = keypoints, scores
        return detections

    # --- training -----------------------------------------------------------------------------------------------------

    def sample(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> Samples:
        """RoIs for the losses: proposals and true boxes, positives and negatives sampled in proportion."""
        true_boxes = [target["boxes"].to(boxes) for target, boxes in zip(targets, proposals)]
        boxes = self.add_gt_proposals(proposals, true_boxes)
        matches, labels = self.assign_targets_to_proposals(boxes, true_boxes, [target["labels"] for target in targets])
        labels = [
            drop_ignored(image_labels, image_boxes, target, overlap=self.spec.ignore_overlap)
            for image_labels, image_boxes, target in zip(labels, boxes, targets)
        ]
        sampled = self.subsample(labels)
        matches = [values[index] for values, index in zip(matches, sampled)]
        return Samples(
            boxes=[values[index] for values, index in zip(boxes, sampled)],
            labels=[values[index] for values, index in zip(labels, sampled)],
            matches=matches,
            true_boxes=[
                values[index] if len(values) else values.new_zeros(len(index), 4)
                for values, index in zip(true_boxes, matches)
            ],
        )

    def box_losses(
        self, logits: Tensor, deltas: Tensor, samples: Samples, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """`loss_classifier` and `loss_box_reg`, each a sum divided by the number of sampled RoIs; 0 without any."""
        spec = self.spec
        labels = torch.cat(samples.labels)
        classifier = losses.class_loss(
            spec.class_loss,
            logits,
            labels,
            allowed=allowed_classes(targets, samples.labels, spec.num_classes),
            weights=self.class_weights,
            alpha=spec.focal_alpha,
            gamma=spec.focal_gamma,
        )
        positive = torch.where(labels > 0)[0]
        boxes, true_boxes = torch.cat(samples.boxes)[positive], torch.cat(samples.true_boxes)[positive]
        # Only the offsets of the positive RoI's own class enter the loss.
        deltas = split_by_class(deltas)[positive, labels[positive]]
        box = losses.box_loss(spec.box_loss, self.box_coder, deltas, boxes, true_boxes, beta=spec.box_loss_beta)
        return {
            "loss_classifier": classifier * spec.class_loss_weight,
            "loss_box_reg": box / max(len(labels), 1) * spec.box_loss_weight,
        }

    def mask_losses(self, logits: Tensor, positives: Samples, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """`loss_mask` (and `loss_mask_dice`), means over the positive RoIs; 0 without any."""
        true_masks = mask_targets(
            [target["masks"] for target in targets], positives.boxes, positives.matches, self.spec.mask_output_size
        )
        inside, outside = log_mask_probabilities(self.spec, logits, torch.cat(positives.labels))
        terms = losses.mask_losses(self.spec.mask_loss, inside, outside, true_masks)
        return {name: term * self.spec.mask_loss_weight for name, term in terms.items()}

    def keypoint_losses(
        self, logits: Tensor, positives: Samples, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """`loss_keypoint`, a mean over the visible keypoints of the positive RoIs; 0 without any."""
        term = keypointrcnn_loss(
            logits.float(), positives.boxes, [target["keypoints"] for target in targets], positives.matches
        )
        return {"loss_keypoint": term * self.spec.keypoint_loss_weight}

    # --- prediction ---------------------------------------------------------------------------------------------------

    def postprocess(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first: `boxes` XYXY [N, 4] inside it, resized pixels, `labels`, `scores`.

        Raises:
            NonFiniteOutput: NaN or infinity among the logits or offsets.
        """
        is_finite = torch.isfinite(logits).all() & torch.isfinite(deltas).all()
        logits, deltas = logits.float(), split_by_class(deltas.float())
        scores = logits.sigmoid() if self.spec.class_loss == "focal" else logits.softmax(dim=-1)
        # Each foreground class of a proposal whose score is above the threshold is a candidate with its own box.
        by_class = self.class_score_thresh
        is_candidate = scores[:, 1:] > (self.score_thresh if by_class is None else by_class)
        num_proposals = [len(image_proposals) for image_proposals in proposals]
        num_candidates = torch.stack([part.sum() for part in is_candidate.split(num_proposals)])
        num_candidates, is_finite = to_host(num_candidates, is_finite)
        if not is_finite:
            raise NonFiniteOutput("the network gave class scores or boxes that are not finite")
        counts = num_candidates.tolist()
        roi, label = torch.nonzero_static(is_candidate, size=sum(counts)).unbind(1)
        label = label + 1
        boxes = decode_boxes(self.box_coder, deltas[roi, label], torch.cat(proposals)[roi])
        sizes = to_device(image_shapes, boxes.device, boxes.dtype)
        boxes = clip_to_sizes(boxes, sizes[row_of_each(counts, boxes.device)])
        is_box = ((boxes[:, 2:] - boxes[:, :2]) >= _SMALLEST_BOX_PX).all(dim=1)
        kept = suppress_images(
            boxes,
            scores[roi, label].masked_fill(~is_box, UNUSABLE),
            label,
            counts,
            kind=self.spec.nms,
            iou_threshold=self.nms_thresh,
            sigma=self.spec.soft_nms_sigma,
            score_threshold=self.score_thresh if by_class is None else by_class[label - 1],
            max_detections=self.detections_per_img,
        )
        return [{"boxes": boxes[keep], "labels": label[keep], "scores": kept_scores} for keep, kept_scores in kept]
