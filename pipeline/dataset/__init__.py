"""Data sets: annotation formats, class maps, checks, subsets, and samples with transforms for training."""
