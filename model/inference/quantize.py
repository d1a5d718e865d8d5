"""Quantisation: dense parts in 8-bit integers for mode int8, calibrated by NNCF with what they see on photos.

NNCF, Intel's Neural Network Compression Framework, is the extra `maskfleet[quantize]`, and is imported here only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.dense_parts import DenseParts
from model.inference import openvino_engine
from model.inference.openvino_engine import EngineError
from model.inference.predictor import Predictor
from model.inference.prefetch import to_tensor
from model.network import MaskRCNN
from model.spec import ModelSpec

TITLES = {"maps": "backbone and RPN head", "box": "box head", "mask": "mask head", "keypoint": "keypoint head"}
"""What users call the dense parts, by their names in `model.dense_parts.DenseParts`."""

# RoIs of all images together that a head is calibrated with, at most: 200 MB of a box head's, 400 MB of the others'.
_MAX_ROIS = {"box": 4096, "mask": 2048, "keypoint": 2048}


@dataclass(frozen=True)
class QuantizedParts:
    """The dense parts of a network as OpenVINO's files, content by name ("maps.xml", "maps.bin", ...).

    Attributes:
        in_float: All parts in float32.
        in_int8: Those that were quantised: all but heads of which the images showed no RoI.
    """

    in_float: Mapping[str, bytes]
    in_int8: Mapping[str, bytes]

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that the network has, keys of `TITLES`."""
        return tuple(name for name in TITLES if f"{name}.xml" in self.in_float)

    def files(self, in_float: Collection[str]) -> dict[str, bytes]:
        """The files of all parts, those named `in_float` in float32, the others in int8 where they were quantised."""
        chosen = {name: data for name, data in self.in_int8.items() if Path(name).stem not in in_float}
        return {**self.in_float, **chosen}


def check_quantizer() -> None:
    """Raises EngineError where NNCF or OpenVINO is not installed. Imports neither."""
    if not openvino_engine.is_installed() or importlib.util.find_spec("nncf") is None:
        raise EngineError("NNCF, which quantises networks, is not installed here; pip install 'maskfleet[quantize]'")


def quantize_parts(
    network: MaskRCNN,
    spec: ModelSpec,
    images: Iterable[np.ndarray],
    num_images: int,
    on_progress: Callable[[str, int, int], None],
) -> QuantizedParts:
    """Quantises the dense parts of a network, each with the inputs that it sees on the images.

    The backbone comes first. The heads then see RoIs that are pooled from its quantised feature maps, of each image a
    few from its best to its worst. The same images give the same numbers.

    Args:
        network: In evaluation mode, in float32 on a CPU.
        spec: The spec it was built from.
        images: uint8 or float32 [H, W, C] as `Predictor.predict` takes them; they are passed over more than once.
        num_images: How many they are.
        on_progress: Called with what is done, of how many images or groups of RoIs, and of how many in all.

    Raises:
        EngineError: NNCF is not installed, or fails on a part.
        NonFiniteOutput: The network gave NaN or infinity.
    """
    check_quantizer()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        openvino_engine.convert(network, folder)
        in_float = _read(folder, TITLES)
        batches = _Inputs(images, lambda image: [_network_input(network, image)], num_images, on_progress)
        in_int8 = _quantize("maps", folder, batches)
        parts = openvino_engine.load_files({**in_float, **in_int8}, torch.get_num_threads())
        rois = {name: list[list[np.ndarray]]() for name in _MAX_ROIS}
        predictor = Predictor(network, spec, parts=_recording(parts, rois, num_images))
        for number, image in enumerate(images, 1):
            predictor.predict([image])
            on_progress("RoIs to calibrate the heads with", number, num_images)
        for name, groups in rois.items():
            if groups:
                in_int8 |= _quantize(name, folder, _Inputs(groups, list, len(groups), on_progress))
    return QuantizedParts(in_float, in_int8)


class _Inputs:
    """The inputs that a part is calibrated with, each a list of arrays; NNCF passes over them."""

    def __init__(
        self,
        source: Iterable[Any],
        to_inputs: Callable[[Any], list[np.ndarray]],
        count: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.source, self.to_inputs, self.count, self.on_progress = source, to_inputs, count, on_progress
        self.title = ""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for number, item in enumerate(self.source, 1):
            inputs = self.to_inputs(item)
            self.on_progress(self.title, number, self.count)  # before, as NNCF does not ask for more than the last
            yield inputs


def _quantize(name: str, folder: Path, inputs: _Inputs) -> dict[str, bytes]:
    """The files of a part of a conversion in int8."""
    openvino, nncf = openvino_engine.import_openvino(), openvino_engine.import_openvino("nncf")
    nncf.set_log_level(logging.ERROR)
    inputs.title = f"calibration of the {TITLES[name]}"
    # What is computed outside of layers stays in float: a mask's last product, whose weights are those of its class.
    # So does an output that is only enlarged. They take no time, and would be rounded to 256 values.
    ignored = nncf.IgnoredScope(
        patterns=["aten::"], types=["Interpolate"] if name == "keypoint" else [], validate=False
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a progress bar of its own
            quantized = nncf.quantize(
                openvino.Core().read_model(folder / f"{name}.xml"),
                nncf.Dataset(inputs),
                subset_size=len(inputs),
                # Ranges of activations that need not lie around 0: of Mask R-CNN they cost less AP.
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=ignored,
                # Weights in 7 bits: without VNNI a processor adds products in 16 bits, which 8 bits would overflow.
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
            )
    except (RuntimeError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        raise EngineError(f"NNCF cannot quantise the {TITLES[name]}: {error}") from error
    target = folder / "int8"
    target.mkdir(exist_ok=True)
    openvino.save_model(quantized, target / f"{name}.xml", compress_to_fp16=False)
    return _read(target, [name])


def _read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The files of those parts that a folder holds."""
    paths = [folder / f"{name}{ending}" for name in names for ending in (".xml", ".bin")]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def _network_input(network: MaskRCNN, image: np.ndarray) -> np.ndarray:
    """An image as the input of the backbone, float32 [1, C, H, W]."""
    planes = to_tensor(image).permute(2, 0, 1)
    planes = planes.float().div_(255) if planes.dtype == torch.uint8 else planes
    return network.transform.for_prediction([planes], [image.shape[:2]]).tensors.numpy()


def _recording(parts: DenseParts, rois: Mapping[str, list[list[np.ndarray]]], num_images: int) -> DenseParts:
    """The parts, whose heads also keep the RoIs of each call: a share of them, evenly from the first to the last."""

    def recorded(name: str) -> Any:
        part, most = getattr(parts, name), max(1, _MAX_ROIS[name] // num_images)

        def call(*inputs: Tensor) -> Any:
            if count := len(inputs[0]):
                chosen = torch.linspace(0, count - 1, min(count, most)).long()
                rois[name].append([tensor[chosen].numpy() for tensor in inputs])
            return part(*inputs)

        return None if part is None else call

    return DenseParts(parts.maps, recorded("box"), recorded("mask"), recorded("keypoint"))
