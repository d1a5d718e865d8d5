"""The way of a training sample: annotations of any format to one internal form, photos to tensors, samples to
batches.
"""
