"""Evaluation: ground truth, matching, average precision, breakdowns, comparison of runs."""
