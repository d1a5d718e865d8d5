"""Transforms of training samples: random augmentation, geometry, copy-paste."""
