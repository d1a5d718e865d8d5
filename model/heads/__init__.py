"""Region proposals and RoI heads: anchors, RPN, RoI pooling, box, mask and keypoint branches, NMS."""
