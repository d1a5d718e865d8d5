"""The region proposal network: where something might be, whatever it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import boxes as box_ops

from model import losses
from model.anchors import build_anchors
from model.matching import NOT_USED, drop_ignored, has_rpn_negatives
from model.spec import ModelSpec


class NonFiniteOutput(ValueError):
    """The network gave NaN or infinity for an image."""


def build_rpn(spec: ModelSpec, in_channels: int, strides: tuple[int, ...]) -> ProposalNetwork:
    """The RPN for maps of `in_channels` channels and these strides."""
    anchors = build_anchors(spec, strides)
    head = ProposalHead(
        in_channels,
        anchors.num_anchors_per_location()[0],
        num_convs=spec.rpn_convs,
        width=spec.rpn_channels or in_channels,
    )
    return ProposalNetwork(spec, anchors, head)


class ProposalHead(RPNHead):
    """torchvision's RPN head, with convolutions of any width."""

    def __init__(self, in_channels: int, num_anchors: int, *, num_convs: int, width: int) -> None:
        super().__init__(width, num_anchors, conv_depth=num_convs)
        if width != in_channels:
            self.conv[0][0] = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
            nn.init.normal_(self.conv[0][0].weight, std=0.01)
            nn.init.zeros_(self.conv[0][0].bias)


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN that knows of ignored regions, of losses and weights, and of a least number of proposals."""

    def __init__(self, spec: ModelSpec, anchors: nn.Module, head: nn.Module) -> None:
        super().__init__(
            anchors,
            head,
            spec.rpn_foreground_iou,
            spec.rpn_background_iou,
            spec.rpn_batch_size_per_image,
            spec.rpn_positive_fraction,
            {"training": spec.rpn_pre_nms_train, "testing": spec.rpn_pre_nms_test},
            {"training": spec.rpn_post_nms_train, "testing": spec.rpn_post_nms_test},
            spec.rpn_nms_threshold,
        )
        self.spec = spec

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The proposals of each image (XYXY [N, 4], resized pixels, best first), and in training the loss terms."""
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        num_per_level = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        # Proposals are constants to whoever looks at them: no gradient through them.
        moved = self.box_coder.decode(deltas.detach(), anchors).reshape(len(anchors), -1, 4)
        proposals, _ = self.filter_proposals(moved, objectness, images.image_sizes, num_per_level)
        if not self.training:
            return proposals, {}
        assert targets is not None, "MaskRCNN.losses has seen to that"
        labels, true_boxes = self.assign_targets_to_anchors(anchors, targets)
        return proposals, self.losses(objectness, deltas, labels, torch.cat(anchors), torch.cat(true_boxes))

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label (1 object, 0 background, -1 not used) and true box of each anchor, image by image."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for index, (image_anchors, target) in enumerate(zip(anchors, targets)):
            labels[index] = drop_ignored(labels[index], image_anchors, target, overlap=self.spec.ignore_overlap)
            if not has_rpn_negatives(target, self.spec.num_classes, partial=self.spec.rpn_partial_negatives):
                labels[index] = torch.where(labels[index] == 0, float(NOT_USED), labels[index])
        return labels, boxes

    def losses(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], anchors: Tensor, true_boxes: Tensor
    ) -> dict[str, Tensor]:
        """`loss_objectness` and `loss_rpn_box_reg`, each a mean over the sampled anchors; 0 where there are none.

        Args:
            objectness: Logits [A, 1] of all anchors, image after image.
            deltas: [A, 4] offsets.
            labels: Of each image's anchors: 1 object, 0 background, -1 not used.
            anchors: XYXY [A, 4], resized pixels.
            true_boxes: XYXY [A, 4] of what an anchor of label 1 is on.
        """
        spec = self.spec
        positive, negative = (torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        count = max(len(sampled), 1)
        wanted = torch.cat(labels)[sampled]
        class_term = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled].float(), wanted, reduction="sum")
        box_term = losses.box_loss(
            spec.rpn_box_loss,
            self.box_coder,
            deltas[positive],
            anchors[positive],
            true_boxes[positive],
            beta=spec.rpn_box_loss_beta,
        )
        return {
            "loss_objectness": class_term / count * spec.rpn_class_loss_weight,
            "loss_rpn_box_reg": box_term / count * spec.rpn_box_loss_weight,
        }

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best proposals of each image (XYXY, resized pixels, inside it) with their scores, best first.

        Raises:
            NonFiniteOutput: NaN or infinity among them; in training the loss says so.
        """
        if not self.training and not torch.isfinite(objectness).all():
            raise NonFiniteOutput("the network gave region scores that are not finite")
        boxes, scores = super().filter_proposals(proposals, objectness, image_shapes, num_anchors_per_level)
        if self.spec.rpn_min_proposals == 0:
            return boxes, scores
        objectness = objectness.detach().reshape(len(boxes), -1)
        for index, (image_boxes, size) in enumerate(zip(boxes, image_shapes)):
            if len(image_boxes) < self.spec.rpn_min_proposals:
                boxes[index], scores[index] = self._fill_up(
                    image_boxes, scores[index], proposals[index], objectness[index], size
                )
        return boxes, scores

    def _fill_up(
        self, kept: Tensor, kept_scores: Tensor, proposals: Tensor, objectness: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """`kept` and, after them, the best of the others (also those that overlap)."""
        candidates = box_ops.clip_boxes_to_image(proposals, size)
        usable = box_ops.remove_small_boxes(candidates, self.min_size)
        order = usable[objectness[usable].argsort(descending=True)]
        # A kept proposal comes again as its own copy: equal to the last bit.
        enough = order[: self.spec.rpn_min_proposals]
        is_new = ~(candidates[enough][:, None] == kept[None]).all(dim=2).any(dim=1)
        extra = enough[is_new][: self.spec.rpn_min_proposals - len(kept)]
        return (
            torch.cat([kept, candidates[extra]]),
            torch.cat([kept_scores, objectness[extra].sigmoid()]),
        )
