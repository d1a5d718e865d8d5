"""Training: losses, assignment of anchors and proposals to objects, and the training step."""
