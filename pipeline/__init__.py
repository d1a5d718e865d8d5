"""Pipeline: storage, image decoding, masks, data sets, segmentation into Parquet, evaluation, results."""
