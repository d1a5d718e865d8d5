"""Detection heads: anchors, RPN, RoI pooling, box, mask and keypoint heads, non-maximum suppression."""
