"""The network: spec, building, checkpoints, training step and prediction, on torch and torchvision alone."""
