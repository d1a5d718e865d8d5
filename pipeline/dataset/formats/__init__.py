"""Annotation formats: one module for each reads and writes it, by way of `pipeline.dataset.types`."""
