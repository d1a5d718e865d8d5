"""`maskfleet schedule`: cron scheduler, its state in a bucket, and the evaluations and segmentations it runs."""
