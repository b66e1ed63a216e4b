"""Inference: ids to text, one token at a time."""
