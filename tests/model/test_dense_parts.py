"""Dense parts: the same detections whoever runs them, and shapes as declared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.dense_parts import to_feature_maps
from model.network import build_model
from model.spec import ModelSpec

SPEC = ModelSpec.tiny(num_classes=3, num_keypoints=4, keypoint_head_channels=(16,), score_threshold=0.0)


@torch.inference_mode()
def test_outputs_have_the_declared_shapes_also_of_no_roi() -> None:
    parts = build_model(SPEC).eval().dense_parts()
    outputs = parts.maps(torch.rand(2, 3, 64, 96))
    assert len(outputs) == 15, "maps, logits and offsets of five levels"
    assert [tuple(output.shape[2:]) for output in outputs[:5]] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    num_anchors = outputs[5].shape[1]
    assert {len(output[0]) for output in outputs[10:]} == {4 * num_anchors}
    channels = outputs[0].shape[1]
    assert parts.mask is not None and parts.keypoint is not None
    for count in (0, 3):
        logits, offsets = parts.box(torch.rand(count, channels, 7, 7))
        assert logits.shape == (count, 4) and offsets.shape == (count, 16)
        masks = parts.mask(torch.rand(count, channels, 14, 14), torch.ones(count, dtype=torch.int64))
        assert masks.shape == (count, 28, 28) and masks.dtype == torch.float32
        assert parts.keypoint(torch.rand(count, channels, 14, 14)).shape == (count, 4, 56, 56)


@torch.inference_mode()
def test_a_detection_runs_the_parts_that_it_is_given() -> None:
    torch.manual_seed(0)
    network = build_model(SPEC).eval()
    parts = network.dense_parts()
    assert parts.mask is not None
    no_masks = replace(parts, mask=lambda rois, labels: torch.zeros(len(rois), 28, 28))
    images, sizes = [torch.rand(3, 64, 96)], [(64, 96)]
    (own,), (given,) = network.detect(images, sizes)[0], network.detect(images, sizes, no_masks)[0]
    assert torch.equal(own["boxes"], given["boxes"]) and len(own["boxes"]) > 0
    assert own["masks"].max() > 0 == given["masks"].max()


@pytest.mark.parametrize("output", [torch.zeros(1), [torch.zeros(1)], {"0": torch.zeros(1)}])
def test_a_backbone_may_give_one_map_a_list_or_a_dict(output: object) -> None:
    assert list(to_feature_maps(output)) == ["0"]  # type: ignore[arg-type]
