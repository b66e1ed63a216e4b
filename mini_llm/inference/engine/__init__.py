"""The engine: many texts, one model."""
