"""Region proposal network (RPN): class-agnostic proposals from anchors, and its loss terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.heads.anchors import build_anchors
from model.heads.boxes import clip_to_sizes, decode_boxes
from model.heads.nms import UNUSABLE, first_of_each, suppress_within
from model.spec import ModelSpec
from model.training import losses
from model.training.assignment import NOT_USED, drop_ignored, has_rpn_negatives
from model.transfers import to_device, to_host, true_columns
from model.vision import ImageList, RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from model.vision import boxes as box_ops


class NonFiniteOutput(ValueError):
    """The network gave NaN or infinity."""


def build_rpn(spec: ModelSpec, in_channels: int, strides: tuple[int, ...]) -> ProposalNetwork:
    """The RPN for feature maps of `in_channels` channels and these strides, finest first."""
    anchors = build_anchors(spec, strides)
    head = ProposalHead(
        in_channels,
        anchors.num_anchors_per_location()[0],
        num_convs=spec.rpn_convs,
        width=spec.rpn_channels or in_channels,
    )
    return ProposalNetwork(spec, anchors, head)


class ProposalHead(RPNHead):
    """torchvision's RPN head, whose convolutions may have another width than the feature maps."""

    def __init__(self, in_channels: int, num_anchors: int, *, num_convs: int, width: int) -> None:
        super().__init__(width, num_anchors, conv_depth=num_convs)
        if width != in_channels:
            self.conv[0][0] = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
            nn.init.normal_(self.conv[0][0].weight, std=0.01)
            nn.init.zeros_(self.conv[0][0].bias)


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN with ignored regions, configurable loss terms, and a least number of proposals."""

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
        """The proposals of each image (XYXY [N, 4], resized pixels, best first), and in training the loss terms.

        Raises:
            NonFiniteOutput: NaN or infinity among the scores of a prediction; in training the loss is not finite then.
        """
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        # Proposals are constants to the RoI heads: no gradient flows through them.
        proposals = self.select(
            [level.detach() for level in objectness], [level.detach() for level in deltas], anchors[0], images
        )
        if not self.training:
            return proposals, {}
        assert targets is not None, "MaskRCNN.losses has checked them"
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        labels, true_boxes = self.assign_targets_to_anchors(anchors, targets)
        return proposals, self.losses(objectness, deltas, labels, torch.cat(anchors), torch.cat(true_boxes))

    def propose(
        self, images: ImageList, maps: list[Tensor], objectness: list[Tensor], deltas: list[Tensor]
    ) -> list[Tensor]:
        """As `select`, from the feature maps and the head's outputs on them."""
        return self.select(objectness, deltas, self.anchor_generator(images, maps)[0], images)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image, the label (1 object, 0 background, -1 not used) and the true box of each of its anchors."""
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
            labels: For each image, of its anchors: 1 object, 0 background, -1 not used.
            anchors: XYXY [A, 4], resized pixels.
            true_boxes: XYXY [A, 4], the object's box where the label is 1.
        """
        spec = self.spec
        positive, negative = (torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        count = max(len(sampled), 1)
        class_targets = torch.cat(labels)[sampled]
        class_term = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled].float(), class_targets, reduction="sum"
        )
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

    def select(
        self, objectness: list[Tensor], deltas: list[Tensor], anchors: Tensor, images: ImageList
    ) -> list[Tensor]:
        """The best proposals of each image (XYXY, resized pixels, inside it), best first.

        Only the anchors with the best scores of each map are decoded, for all images and maps at once.

        Args:
            objectness: Logits of each map, [B, A, H, W].
            deltas: Offsets of each map, [B, 4 A, H, W].
            anchors: XYXY [sum of H W A, 4], the same for all images of a batch.
            images: The batch, for the sizes of its images.

        Raises:
            NonFiniteOutput: NaN or infinity among the scores of a prediction.
        """
        logits = [level.permute(0, 2, 3, 1).flatten(1).float() for level in objectness]
        is_finite = torch.stack([torch.isfinite(level).all() for level in logits]).all()
        offsets = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for level in deltas]
        level_anchors = anchors.split([level.shape[1] for level in logits])
        best = [level.topk(min(self.pre_nms_top_n(), level.shape[1]), dim=1) for level in logits]
        best_offsets = [level.gather(1, top.indices[..., None].expand(-1, -1, 4)) for level, top in zip(offsets, best)]
        best_anchors = [level[top.indices] for level, top in zip(level_anchors, best)]
        boxes = self._decode(torch.cat(best_offsets, dim=1), torch.cat(best_anchors, dim=1), images)
        num_images, num_boxes = boxes.shape[:2]
        scores = torch.cat([top.values for top in best], dim=1).sigmoid()
        level = torch.cat([torch.full_like(top.indices, index) for index, top in enumerate(best)], dim=1)
        image = torch.arange(num_images, device=boxes.device)[:, None].expand(-1, num_boxes)
        is_box = ((boxes[..., 2:] - boxes[..., :2]) >= self.min_size).all(dim=2) & (scores >= self.score_thresh)
        boxes, scores = boxes.flatten(0, 1), scores.masked_fill(~is_box, UNUSABLE).flatten()
        keep = suppress_within(boxes, scores, (image * len(best) + level).flatten(), self.nms_thresh)
        chosen = first_of_each(image.flatten()[keep], is_box.flatten()[keep], num_images, self.post_nms_top_n())
        counts, is_finite = to_host(chosen.sum(1), is_finite)
        if not self.training and not is_finite:
            raise NonFiniteOutput("the network gave region scores that are not finite")
        proposals = [boxes[keep[columns]] for columns in true_columns(chosen, counts.tolist())]
        if self.spec.rpn_min_proposals == 0:
            return proposals
        candidates = self._decode(torch.cat(offsets, dim=1), anchors.expand(num_images, -1, -1), images)
        return [self._fill_up(*image_boxes) for image_boxes in zip(proposals, candidates, torch.cat(logits, dim=1))]

    def _decode(self, deltas: Tensor, anchors: Tensor, images: ImageList) -> Tensor:
        """Boxes XYXY [B, N, 4], clipped to the images, from offsets and anchors of the same shape."""
        boxes = decode_boxes(self.box_coder, deltas.reshape(-1, 4), anchors.reshape(-1, 4)).view_as(deltas)
        return clip_to_sizes(boxes, to_device(images.image_sizes, boxes.device, boxes.dtype)[:, None])

    def _fill_up(self, kept: Tensor, candidates: Tensor, objectness: Tensor) -> Tensor:
        """One image's kept boxes, then the best of the suppressed candidates up to the least number of proposals."""
        if len(kept) >= self.spec.rpn_min_proposals:
            return kept
        usable = box_ops.remove_small_boxes(candidates, self.min_size)
        order = usable[objectness[usable].argsort(descending=True)]
        # A kept proposal is among the candidates too, equal bit for bit.
        best = order[: self.spec.rpn_min_proposals]
        is_new = ~(candidates[best][:, None] == kept[None]).all(dim=2).any(dim=1)
        extra = best[is_new][: self.spec.rpn_min_proposals - len(kept)]
        return torch.cat([kept, candidates[extra]])
