"""Tokenizer: text to ids and back, losing nothing."""
