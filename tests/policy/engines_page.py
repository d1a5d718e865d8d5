"""docs/engines.md, measured: which engine runs each part of each published network, and how far it is from torch.

`python -m tests.policy.engines_page` writes it anew, in some minutes; `test_engines_page.py` holds the page to it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.inference import openvino_engine
from model.inference.predictor import Detections, Predictor
from model.network import MaskRCNN, build_model
from model.presets import DETECTRON2_NAMES, TORCHVISION_NAMES, preset
from model.spec import ModelSpec
from model.vision import FrozenBatchNorm2d
from tests.paths import DOCS

PAGE = DOCS / "engines.md"
NETWORKS = (*TORCHVISION_NAMES, *DETECTRON2_NAMES)
PARTS = ("maps", "box", "mask", "keypoint")
COMPARED = 20  # detections of torch that are looked for among twice as many

HEAD = """# Engines

What runs the layers of each published network with `segment.engine=openvino`, and the largest difference from torch's
own layers in float32: of a box in pixels, a score, a mask's probability, a keypoint in pixels. Random weights, two
drawn images, the 20 best detections of each. Written by `python -m tests.policy.engines_page`; a test fails where a
part is no longer converted or a difference exceeds 0.01 px, 1e-4, 1e-3 and 0.01 px.

| network | backbone, RPN head | box head | mask head | keypoint head | box | score | mask | keypoint |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Comparison:
    """The engine of each part, None where a network has no such part, and the largest differences from torch."""

    engines: tuple[str | None, ...]
    differences: tuple[float | None, ...]

    def to_row(self, name: str) -> str:
        """Its row of the page."""
        figures = ("" if value is None else f"{value:.0e}" for value in self.differences)
        return f"| `{name}` | {' | '.join(engine or '' for engine in self.engines)} | {' | '.join(figures)} |\n"


@torch.inference_mode()
def compare(spec: ModelSpec) -> Comparison:
    """Converts a network with random weights and compares what it finds on two drawn images with what torch finds."""
    torch.manual_seed(0)
    spec = spec.replace(image_min_size=160, image_max_size=256, score_threshold=0.0, max_detections=2 * COMPARED)
    spec = spec.replace(rpn_pre_nms_test=200, rpn_post_nms_test=100)
    network = build_model(spec).eval()
    random = np.random.default_rng(0)
    coarse = [Image.fromarray(random.integers(0, 256, (10, 14, 3), np.uint8)) for _ in range(2)]
    images = [np.array(image.resize((224, 160), Image.Resampling.BICUBIC)) for image in coarse]
    planes = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
    settle(network, network.transform.for_prediction(planes, [image.shape[:2] for image in images]).tensors)
    with tempfile.TemporaryDirectory() as folder:
        openvino_engine.convert(network, Path(folder))
        parts = openvino_engine.load(Path(folder), "float32", torch.get_num_threads())
        found = Predictor(network, spec, parts=parts).predict(images)
    expected = Predictor(network, spec, parts=network.dense_parts()).predict(images)
    largest = np.max([differences_of(*pair) for pair in zip(found, expected, strict=True)], axis=0)
    has = {name: getattr(parts, name) is not None for name in PARTS}
    shown = (True, True, has["mask"], has["keypoint"])
    return Comparison(
        tuple("openvino" if has[name] else None for name in PARTS),
        tuple(float(value) if is_shown else None for value, is_shown in zip(largest, shown)),
    )


def settle(network: MaskRCNN, batch: Tensor) -> None:
    """Gives the norms the statistics of their inputs, so that values neither grow nor vanish with depth."""

    def take_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        module.get_buffer("running_mean").copy_(values.mean((0, 2, 3)))
        module.get_buffer("running_var").copy_(values.var((0, 2, 3)).clamp(min=1e-3))

    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)]
    hooks = [module.register_forward_pre_hook(take_statistics) for module in norms]
    network.backbone(batch)
    for hook in hooks:
        hook.remove()


def differences_of(found: Detections, expected: Detections) -> tuple[float, float, float, float]:
    """The largest difference of box, score, mask and keypoint between torch's best detections and their counterparts.

    A counterpart is of the same class and has the nearest box, as detections of equal scores may change places.
    """
    largest = np.zeros(4)
    for index in range(COMPARED):
        candidates = np.flatnonzero(found.labels == expected.labels[index])
        distances = np.abs(found.boxes[candidates] - expected.boxes[index]).max(axis=1)
        twin = candidates[distances.argmin()]
        pairs = [(found.boxes, expected.boxes), (found.scores, expected.scores)]
        pairs += [(found.mask_probs, expected.mask_probs)]
        if found.keypoints is not None and expected.keypoints is not None:
            pairs += [(found.keypoints, expected.keypoints)]
        apart = [np.abs(ours[twin] - reference[index]).max(initial=0.0) for ours, reference in pairs]
        largest[: len(apart)] = np.maximum(largest[: len(apart)], apart)
    return tuple(largest.tolist())  # type: ignore[return-value]


if __name__ == "__main__":
    rows = [compare(preset(name)).to_row(name) for name in NETWORKS]
    PAGE.write_text(HEAD + "".join(rows))
