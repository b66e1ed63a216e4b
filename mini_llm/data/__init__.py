"""Data: raw text to a memory-mapped token store."""
