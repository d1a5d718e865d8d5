"""Copy-paste augmentation: pastes objects of one photo onto another (Ghiasi et al., Simple Copy-Paste, 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors

from pipeline.dataset.sample import SampleDict, size_of
from pipeline.dataset.transforms.geometry import crop_sample, mask_boxes


def paste_objects(
    sample: SampleDict, donor: SampleDict, *, labelled_classes: Sequence[int] | None = None
) -> SampleDict:
    """The sample with each of the donor's objects pasted onto it with probability 0.5.

    Objects keep their position and are cropped to the sample's size. Objects of classes that were not looked for on
    the sample (`labelled_classes`; None: all were) are not pasted. Covered pixels leave the masks below, and boxes of
    objects that lost pixels are computed again from their masks; a wholly covered object has an empty mask, and
    `to_target` drops it. A covered keypoint counts as hidden (1). A donor without objects changes nothing.
    """
    size = size_of(sample)
    donor = crop_sample(donor, 0, 0, size)
    donor_masks = donor["masks"].as_subclass(Tensor) != 0
    chosen = (torch.rand(len(donor_masks)) < 0.5) & donor_masks.flatten(1).any(dim=1)
    if labelled_classes is not None:
        chosen &= torch.isin(donor["labels"], torch.tensor(labelled_classes, dtype=torch.int64))
    if not chosen.any():
        return sample
    masks, pasted = sample["masks"].as_subclass(Tensor) != 0, donor_masks[chosen]
    cover = pasted.any(dim=0)
    visible = masks & ~cover
    is_cut = (masks & cover).flatten(1).any(dim=1)
    photo = torch.where(cover, donor["image"].as_subclass(Tensor), sample["image"].as_subclass(Tensor))
    joined = dict(sample)
    joined["image"] = tv_tensors.Image(photo)
    joined["masks"] = tv_tensors.Mask(torch.cat([visible, pasted]).to(torch.uint8))
    joined["labels"] = torch.cat([sample["labels"], donor["labels"][chosen]])
    own_boxes = torch.where(is_cut[:, None], mask_boxes(visible), sample["boxes"].as_subclass(Tensor))
    boxes = torch.cat([own_boxes, donor["boxes"].as_subclass(Tensor)[chosen]])
    joined["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    if "keypoints" in sample:
        points = sample["keypoints"].as_subclass(Tensor)
        column = points[..., 0].floor().long().clamp(0, size[1] - 1)
        row = points[..., 1].floor().long().clamp(0, size[0] - 1)
        hidden = cover[row, column] & (sample["visibility"] == 2)
        visibility = torch.where(hidden, 1.0, sample["visibility"])
        joined["visibility"] = torch.cat([visibility, donor["visibility"][chosen]])
        points = torch.cat([points, donor["keypoints"].as_subclass(Tensor)[chosen]])
        joined["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=size)
    return joined
