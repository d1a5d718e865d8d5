"""OpenVINO engine: converts the dense parts of a network once, and runs them on a CPU in torch's place."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint_folder import CheckpointError
from model.dense_parts import DenseParts, MaskPart
from model.network import MaskRCNN, NonFiniteOutput
from model.spec import ModelSpec

_FORMAT = 1  # of a conversion's folder; a change of what is converted makes all of them anew
_LISTING = "conversion.json"
_TELEMETRY = "openvino_telemetry"
# RoIs that are computed together, and the number that fewer are filled up to a multiple of: memory stays bounded, and
# there are few shapes, for each of which OpenVINO compiles kernels and keeps them.
_ROIS_AT_ONCE = 64
_ROIS_MULTIPLE = 16
# Largest weight of a network, and value of an image, that are computed with. OpenVINO's ReLU makes 0 of NaN, so that
# values that are not finite may leave no trace in what it gives; below this, none come up in a network of use.
_LARGEST_VALUE = 1e12
# Images of fewer pixels than this are computed as one batch, others one by one.
_LARGE_IMAGE_PX = 400 * 400


class EngineError(ValueError):
    """An engine that cannot compute here, not in a precision, or not this network; the message is for the user."""


def is_installed() -> bool:
    """Whether there is an OpenVINO for this Python and machine. Does not import it."""
    spec = importlib.util.find_spec("openvino")
    return spec is not None and spec.origin is not None  # a folder of that name has none


def computes_in(precision: str) -> bool:
    """Whether OpenVINO computes in 'float32', 'bfloat16' or 'int8' on this machine's processor."""
    return precision != "bfloat16" or "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def conversion_name(sha256: str, spec: ModelSpec) -> str:
    """A hash that stands for the content of a conversion: weights, network, versions. Precisions share one."""
    parts = (_FORMAT, sha256, spec, torch.__version__, version("openvino"))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def convert(network: MaskRCNN, folder: Path) -> None:
    """Writes a network's dense parts into an empty folder, in float32, and last a listing of the files' hashes.

    Args:
        network: In evaluation mode, in float32 on a CPU; not a copy for prediction, whose layers choose an algorithm by
            the size of a map.
        folder: Gets a pair of files for each part, which `load` reads.

    Raises:
        EngineError: Weights that are not finite, or beyond all use.
    """
    openvino = import_openvino()
    for weights_name, weights in network.state_dict().items():
        if not _are_usable(weights):
            raise EngineError(f"openvino cannot compute the network: its weights {weights_name} are not finite")
    for name, (module, examples, shapes) in _examples(network).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: assertions on shapes become constants
            model = openvino.convert_model(module.eval(), example_input=examples, input=shapes)
        model.set_friendly_name(name)  # else one with a number, that of the process's conversions
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    files = {path.name: _sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / _LISTING).write_text(json.dumps(files, indent=1) + "\n")


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a conversion whose files are what was written."""
    try:
        files = json.loads((folder / _LISTING).read_bytes())
        return "maps.xml" in files and all(_sha256_of(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def load(folder: Path, precision: str, num_threads: int) -> DenseParts:
    """The parts that `convert` wrote, compiled for this machine's CPU.

    Args:
        folder: The conversion.
        precision: 'float32' or 'bfloat16', in which all of it is computed; one that the processor computes in, see
            `computes_in`.
        num_threads: Threads of a call. They are not bound to cores, as those of another process might be bound to the
            same ones.
    """
    core = _core()
    return _compile({path.stem: core.read_model(path) for path in sorted(folder.glob("*.xml"))}, precision, num_threads)


def load_files(files: Mapping[str, bytes], num_threads: int) -> DenseParts:
    """The parts of a checkpoint that was quantised, compiled for this machine's CPU.

    What is not quantised in them is computed in float32, also where the processor computes in bfloat16.

    Args:
        files: `model.checkpoint.Checkpoint.int8`.
        num_threads: See `load`.

    Raises:
        CheckpointError: This version of OpenVINO cannot read the files.
    """
    core = _core()
    try:
        models = {
            name.removesuffix(".xml"): core.read_model(data, files[name.removesuffix(".xml") + ".bin"])
            for name, data in files.items()
            if name.endswith(".xml")
        }
        return _compile(models, "float32", num_threads)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1] if isinstance(error, RuntimeError) else f"{error} is missing"
        raise CheckpointError(
            f"OpenVINO {version('openvino')} cannot read the checkpoint's parts for mode int8: {reason}; quantise again"
        ) from error


def _compile(models: Mapping[str, Any], precision: str, num_threads: int) -> DenseParts:
    core = _core()
    config = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    parts = {name: Part(core.compile_model(model, "CPU", config)) for name, model in models.items()}
    return DenseParts(
        maps=parts["maps"].of_images,
        box=parts["box"].of_rois,
        mask=_only_output(parts.get("mask")),
        keypoint=_only_output(parts.get("keypoint")),
    )


class Part:
    """A part as OpenVINO compiled it, called with float32 tensors on the CPU; each thread has a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._requests = threading.local()

    def of_images(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs for a batch [B, C, H, W]; valid until the thread's next call.

        Small images are computed together, large ones one by one.

        Raises:
            NonFiniteOutput: Images with NaN or infinity.
        """
        if not _are_usable(images):
            raise NonFiniteOutput("the images have values that are not finite")
        if images.shape[2] * images.shape[3] < _LARGE_IMAGE_PX or len(images) == 1:
            return tuple(self._infer(images))
        of_each = [[output.clone() for output in self._infer(image)] for image in images.split(1)]
        return tuple(torch.cat(outputs) for outputs in zip(*of_each))

    def of_rois(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs for N RoIs, of inputs whose first axis is N; N = 0 gives outputs whose first axis is 0."""
        pieces = [self._piece(piece) for piece in zip(*(tensor.split(_ROIS_AT_ONCE) for tensor in inputs))]
        return [torch.cat(outputs) for outputs in zip(*pieces)]

    def _piece(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        count = len(inputs[0])
        missing = -count % _ROIS_MULTIPLE if count else _ROIS_MULTIPLE
        if missing:
            inputs = [F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing)) for tensor in inputs]
        return [output[:count].clone() for output in self._infer(*inputs)]

    def _infer(self, *inputs: Tensor) -> list[Tensor]:
        """One call; the outputs share the memory of the thread's request."""
        openvino = import_openvino()
        if not hasattr(self._requests, "own"):
            self._requests.own = self.compiled.create_infer_request()
        request = self._requests.own
        arrays = [tensor.contiguous().numpy() for tensor in inputs]  # kept: the request reads their memory
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        request.infer()
        return [torch.from_numpy(output.data) for output in request.output_tensors]


def _are_usable(values: Tensor) -> bool:
    """Whether all values are finite, and not larger than what is computed with."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool(low >= -_LARGEST_VALUE) and bool(high <= _LARGEST_VALUE)


def _only_output(part: Part | None) -> Callable[..., Tensor] | None:
    return None if part is None else lambda *inputs: part.of_rois(*inputs)[0]


def _examples(network: MaskRCNN) -> dict[str, tuple[Any, Any, Any]]:
    """For each part by name: the module, inputs to trace it with, and their shapes with -1 for what may change."""
    parts, heads = network.dense_parts(), network.roi_heads
    if isinstance(parts.mask, MaskPart):
        parts.mask.in_pieces = False
    examples: dict[str, tuple[Any, Any, Any]] = {}
    num_channels = len(network.transform.image_mean)
    examples["maps"] = (parts.maps, torch.rand(1, num_channels, 128, 160), [-1, num_channels, -1, -1])
    pooled = {"box": heads.box_roi_pool, "mask": heads.mask_roi_pool, "keypoint": heads.keypoint_roi_pool}
    for name, pooler in pooled.items():
        part = getattr(parts, name)
        if part is None:
            continue
        side, channels = pooler.output_size, network.backbone.out_channels
        rois, shape = torch.rand(2, channels, side, side), [-1, channels, side, side]
        if name == "mask":
            examples[name] = (part, (rois, torch.ones(2, dtype=torch.int64)), [shape, [-1]])
        else:
            examples[name] = (part, rois, shape)
    return examples


def import_openvino(name: str = "openvino") -> Any:
    """The module `openvino`, or `nncf`, imported without its usage statistics.

    Either would send events, OpenVINO while it is imported. Without the package for that, they take stubs of their own.
    """
    if name in sys.modules:
        return sys.modules[name]
    telemetry = sys.modules.pop(_TELEMETRY, None)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's way to forbid an import
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[_TELEMETRY]
        if telemetry is not None:
            sys.modules[_TELEMETRY] = telemetry


def _core() -> Any:
    return import_openvino().Core()


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
