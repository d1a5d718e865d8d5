"""Inference: predictor, batch-norm folding, faster convolutions, upload to the GPU, mask run lengths, masks by SAM."""
