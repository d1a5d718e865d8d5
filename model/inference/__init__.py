"""Inference: predictor, engines, batch-norm folding, faster convolutions, upload to the GPU, mask run lengths."""
