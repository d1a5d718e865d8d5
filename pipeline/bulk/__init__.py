"""Bulk run: segments a corpus into Parquet tables on Ray, exactly once for each image after any crash."""
