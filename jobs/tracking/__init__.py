"""Tracking: figures, settings and files of trainings, evaluations and sweeps, sent to MLflow beside the output."""
