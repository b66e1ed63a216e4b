"""Evaluation: how good a model is, in numbers that others can check."""
