"""Storage: URIs, local folders, S3 buckets, and the cache of files fetched from buckets."""
