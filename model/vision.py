"""torchvision as the network uses it: the one module of `model` that imports it, without torch's compiler.

torchvision asks for `torch._dynamo` while it is imported, see `model.lean_import`. So it is imported here, once, and
the other modules take its names from here.
"""

from __future__ import annotations

from model.lean_import import import_torchvision

import_torchvision()  # before any of these: work at import, which is this module's purpose

from torchvision import models
from torchvision.models import detection, resnet, vgg
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_inference, keypointrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.models.detection.transform import (
    GeneralizedRCNNTransform,
    resize_boxes,
    resize_keypoints,
)
from torchvision.ops import (
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
from torchvision.ops.boxes import box_area
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
