"""Inference: the predictor, batch-norm folding, upload to the GPU, mask run lengths on the device."""
