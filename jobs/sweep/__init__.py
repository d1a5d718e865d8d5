"""`maskfleet sweep`: a grid of trainings on Ray Tune, and the table of their results."""
