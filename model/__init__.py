"""Mask R-CNN on torch and torchvision: spec, network, checkpoints, training, weights, prediction."""
