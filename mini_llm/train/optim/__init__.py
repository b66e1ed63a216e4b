"""Optimisation: from gradients to better weights."""
