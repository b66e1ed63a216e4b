"""Rows: which tokens a step sees."""
