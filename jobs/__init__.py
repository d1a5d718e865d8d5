"""The commands: configuration, command line, Ray clusters, training, bulk segmentation, evaluation, schedules."""
