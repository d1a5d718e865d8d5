"""Second peer of `bench_latency`: OpenVINO's own conversion of torchvision's whole Mask R-CNN, for one image size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.inference.openvino_engine import import_openvino

_NAMES = ("boxes", "labels", "scores", "masks")


class _OneImage(nn.Module):
    """A network that takes one image and gives a tuple, which is what a trace can hold."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (output,) = self.network([image])
        return tuple(output[name] for name in _NAMES)


def convert_whole(network: nn.Module, image: Tensor, num_threads: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """The network as one OpenVINO model: transform, suppression, pooling and pasting of masks included.

    Args:
        network: torchvision's, in evaluation mode.
        image: float32 [3, H, W] in 0..1 to trace it with; it takes images of this size only.
        num_threads: threads of a call.

    Returns:
        A function of an image that gives its boxes, labels, scores and full-size masks.
    """
    openvino = import_openvino()
    model = openvino.convert_model(_OneImage(network).eval(), example_input=(image,))
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()

    def detect(pixels: Tensor) -> dict[str, Tensor]:
        array = pixels.contiguous().numpy()  # kept: the request reads its memory
        request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
        request.infer()
        return {name: torch.from_numpy(output.data) for name, output in zip(_NAMES, request.output_tensors)}

    return detect
