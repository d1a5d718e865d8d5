"""The programs people run: configuration, command line, cluster, training and bulk jobs."""
