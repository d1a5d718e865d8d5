"""Boxes: decoding is torchvision's bit for bit, clipping by hand."""

import torch

from model.heads.boxes import clip_to_sizes, decode_boxes
from model.vision import RegionProposalNetwork, RoIHeads


def test_decoded_boxes_are_torchvisions_bit_for_bit():
    heads = RoIHeads(None, None, None, 0.5, 0.5, 16, 0.25, (10.0, 9.0, 5.0, 4.0), 0.05, 0.5, 100)
    rpn = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
    corners = torch.rand(1001, 2) * 800
    boxes = torch.cat([corners, corners + torch.rand(1001, 2) * 300], dim=1)
    for coding in (heads.box_coder, rpn.box_coder):
        for deltas in (torch.randn(1001, 4) * 3, torch.randn(0, 4)):
            expected = coding.decode_single(deltas, boxes[: len(deltas)])
            assert torch.equal(decode_boxes(coding, deltas, boxes[: len(deltas)]), expected)


def test_boxes_are_clipped_to_the_height_and_width_of_their_images():
    boxes = torch.tensor([[-1.0, -2, 5, 6], [3, 4, 50, 60]])
    assert clip_to_sizes(boxes, torch.tensor([[4.0, 3], [40, 30]])).tolist() == [[0, 0, 3, 4], [3, 4, 30, 40]]
