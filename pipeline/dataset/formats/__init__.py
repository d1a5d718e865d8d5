"""Annotation formats: one module a format, read to and written from the types of `pipeline.dataset.types`."""
