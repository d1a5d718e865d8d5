"""`maskfleet train`: checks, the loop that every worker runs, data, validation, output and summary."""
