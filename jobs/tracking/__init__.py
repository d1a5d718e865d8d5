"""MLflow: sends it figures, settings and files of trainings, evaluations and sweeps, beside the output."""
