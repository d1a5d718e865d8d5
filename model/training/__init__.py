"""Training: loss terms, assignment with missing labels, and the distributed training step."""
