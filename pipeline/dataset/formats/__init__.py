"""Annotation formats: one module for each reads it into, and writes it from, the types of `pipeline.dataset.types`."""
