"""Inference: predictor, engines, batch-norm folding, convolutions, upload to the GPU, run lengths, masks by SAM."""
