"""Pipeline: storage, image decoding, masks, data sets, bulk segmentation into Parquet, evaluation and results."""
