"""torchvision as the network uses it: the one module of `model` that imports it, without torch's compiler.

torchvision asks for `torch._dynamo` while it is imported, see `model.lean_import`. So it is imported here, once, and
the other modules take its names from here.
"""

from __future__ import annotations

from model.lean_import import import_torchvision

import_torchvision()  # before any of these: work at import, which is this module's purpose

from torchvision import models  # noqa: E402
from torchvision.models import detection, resnet, vgg  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.faster_rcnn import (  # noqa: E402
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor  # noqa: E402
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads  # noqa: E402
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_inference, keypointrcnn_loss  # noqa: E402
from torchvision.models.detection.rpn import (  # noqa: E402
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.models.detection.transform import (  # noqa: E402
    GeneralizedRCNNTransform,
    resize_boxes,
    resize_keypoints,
)
from torchvision.ops import (  # noqa: E402
    FeaturePyramidNetwork,
    FrozenBatchNorm2d,
    SqueezeExcitation,
    box_iou,
    boxes,
    clip_boxes_to_image,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    nms,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
)
from torchvision.ops.boxes import box_area  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # noqa: E402

__all__ = [
    "AnchorGenerator",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "GeneralizedRCNNTransform",
    "ImageList",
    "KeypointRCNNHeads",
    "KeypointRCNNPredictor",
    "LastLevelMaxPool",
    "MaskRCNNHeads",
    "RPNHead",
    "RegionProposalNetwork",
    "RoIHeads",
    "SqueezeExcitation",
    "TwoMLPHead",
    "box_area",
    "box_iou",
    "boxes",
    "clip_boxes_to_image",
    "complete_box_iou_loss",
    "concat_box_prediction_layers",
    "detection",
    "distance_box_iou_loss",
    "generalized_box_iou_loss",
    "keypointrcnn_inference",
    "keypointrcnn_loss",
    "models",
    "nms",
    "resize_boxes",
    "resize_keypoints",
    "resnet",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "vgg",
]
