"""Transforms of training samples: augmentation, geometry, copy-paste."""
