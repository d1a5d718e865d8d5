"""Backbones: classification networks cut into stages, their norm layers, and the feature pyramid on top."""
