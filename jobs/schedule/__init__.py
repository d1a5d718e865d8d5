"""`maskfleet schedule`: cron ticks, their shared state, and the tasks they run."""
