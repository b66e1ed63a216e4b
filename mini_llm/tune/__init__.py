"""Tuning: from a model that continues to one that answers."""
