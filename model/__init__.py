"""The network: spec, building, checkpoints, training step and prediction, on torch and torchvision alone."""

from model.lean_import import import_torchvision

import_torchvision()
