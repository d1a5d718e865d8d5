"""Checkpoints from published weights: torchvision's and detectron2's files as networks with spec and classes.

`model.weights.loading` puts weights into a network that somebody has specified. Here the file itself says which network
it belongs to: by its tensors' names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.categories import Category, check_categories
from model.checkpoint import Checkpoint, new_checkpoint
from model.checkpoint_folder import CheckpointError
from model.network import build_model
from model.presets import DETECTRON2_NAMES, TORCHVISION_NAMES, TORCHVISION_PREFIX, preset
from model.spec import ModelSpec
from model.vision import detection
from model.weights.detectron2 import is_detectron2
from model.weights.loading import find_state_dict, load_state_dict, read_state_dict, to_our_names

COCO = "coco"
_DEFAULT_NETWORK = "maskrcnn_resnet50_fpn_v2"  # what "coco" stands for: torchvision's best Mask R-CNN
WEIGHTS_SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")

_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"
_KEYPOINT_SCORES = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
_COCO_ROWS = (81, 91)  # background and COCO's 80 classes, without and with the ten ids that belong to no class


def is_published_name(source: str) -> bool:
    """Whether a name stands for published weights: "coco", or "torchvision:" and the name of a network."""
    return source == COCO or source.startswith(TORCHVISION_PREFIX)


def is_weights_file(source: str) -> bool:
    """Whether a path or URI ends like a file of weights; a checkpoint is a folder."""
    return source.endswith(WEIGHTS_SUFFIXES)


def checkpoint_from_weights(
    source: str, *, network: str | None = None, class_names: Sequence[str] | None = None
) -> Checkpoint:
    """The checkpoint that published weights are: a spec, the classes and the tensors, by our names.

    Args:
        source: "coco" (torchvision's ``maskrcnn_resnet50_fpn_v2``), "torchvision:NAME" (one of `TORCHVISION_NAMES`), or
            the path of a file: torchvision's form (.pth) or detectron2's zoo (.pkl, .pth), also one that was fine-tuned
            to other classes.
        network: Name of the published network that the file belongs to (see `model.presets.preset`). None tells it by
            the tensors' names and shapes. Not allowed with a published name.
        class_names: The classes, in the order of the network's labels. None: COCO's 80 with their own ids, or person
            alone for a keypoint network of one class.

    Raises:
        CheckpointError: No such weights; they cannot be fetched, read or recognised; a tensor is missing or left over;
            or classes that nobody named.
    """
    try:
        if is_published_name(source):
            if network is not None:
                raise ValueError(f"{source!r} names its network itself; model.network is not allowed with it")
            name = _DEFAULT_NETWORK if source == COCO else source.removeprefix(TORCHVISION_PREFIX)
            if name not in TORCHVISION_NAMES:
                names = ", ".join(TORCHVISION_PREFIX + known_name for known_name in TORCHVISION_NAMES)
                raise ValueError(f"{source!r}: allowed are {COCO}, {names}")
            spec = preset(name)
            state_dict = find_state_dict(spec, COCO)
        else:
            state_dict = read_state_dict(source)
            spec = preset(network) if network is not None else find_spec(state_dict, source)
        spec = _with_sizes(spec, state_dict)
        categories = _categories(spec, class_names, source)
        model = build_model(spec)
        report = load_state_dict(model, spec, state_dict, source=source)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if report.fresh or report.left_out:
        name = next(iter([*report.fresh, *report.left_out]))
        fault = report.left_out.get(name, "not in the file")
        raise CheckpointError(
            f"{source}: {len(report.fresh)} tensors of the network are missing and {len(report.left_out)} are left "
            f"over, such as {name} ({fault}); give model.network, the name of the network that these weights belong to"
        )
    return new_checkpoint(model, spec, categories, progress={"weights": source})


def find_spec(state_dict: Mapping[str, Tensor], source: str) -> ModelSpec:
    """The spec of the published network whose tensors have just these names and shapes, whatever its classes.

    Raises:
        ValueError: There is none.
    """
    names = DETECTRON2_NAMES if is_detectron2(state_dict) else TORCHVISION_NAMES
    for name in names:
        spec = _with_sizes(preset(name), state_dict)
        with torch.device("meta"):
            model = build_model(spec)
        if _shapes(to_our_names(model, dict(state_dict), spec, [])) == _shapes(model.state_dict()):
            return spec
    raise ValueError(
        f"{source}: its {len(state_dict)} tensors are those of no network known here; known are "
        f"{', '.join([*TORCHVISION_NAMES, *DETECTRON2_NAMES])}. A network of your own is given by its checkpoint folder"
    )


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The tensors' shapes; batch norm's counters, which older files lack, are left out."""
    return {name: tensor.shape for name, tensor in state_dict.items() if not name.endswith("num_batches_tracked")}


def _with_sizes(spec: ModelSpec, state_dict: Mapping[str, Tensor]) -> ModelSpec:
    """The spec with the numbers of classes and keypoints that the tensors have."""
    changes: dict[str, int] = {}
    scores, keypoints = state_dict.get(_CLASS_SCORES), state_dict.get(_KEYPOINT_SCORES)
    if scores is not None:
        changes["num_classes"] = len(_coco_categories()) if len(scores) in _COCO_ROWS else max(1, len(scores) - 1)
    if keypoints is not None and spec.num_keypoints and keypoints.ndim == 4:
        changes["num_keypoints"] = keypoints.shape[1]
    return spec.replace(**changes)


def _categories(spec: ModelSpec, class_names: Sequence[str] | None, source: str) -> tuple[Category, ...]:
    if class_names is not None:
        categories = tuple(Category(number, name) for number, name in enumerate(class_names, start=1))
        try:
            check_categories(categories, spec.num_classes)
        except ValueError as error:
            raise ValueError(f"model.classes: {error}") from None
        return categories
    coco = _coco_categories()
    if spec.num_classes == len(coco):
        return coco
    if spec.num_classes == 1 and spec.num_keypoints:
        return coco[:1]
    raise ValueError(
        f"{source}: its {spec.num_classes} classes have no names in the file; "
        f"give model.classes, their {spec.num_classes} names in the order of the labels"
    )


def _coco_categories() -> tuple[Category, ...]:
    """COCO's 80 classes with their own ids, 1 to 90."""
    names = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
    unused = ("__background__", "N/A")
    return tuple(Category(number, name) for number, name in enumerate(names) if name not in unused)
