"""Sampling: from a step's scores to one token."""
