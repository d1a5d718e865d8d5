"""`maskfleet train`: checks, the loop every worker runs, data, validation, output and summary."""
