"""Evaluation against ground truth: matching, average precision, breakdowns, comparison of two runs."""
