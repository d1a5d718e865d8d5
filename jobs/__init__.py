"""Commands: settings, command line, Ray clusters, training, sweeps, segmentation, evaluation, schedules."""
