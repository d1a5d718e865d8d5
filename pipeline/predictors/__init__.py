"""Predictors of the user's own: the contract that they keep, how they are found, and how their answers are checked."""
