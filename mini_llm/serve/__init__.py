"""Serve: a model behind HTTP, in the shapes that every client knows, and a page that shows how it thinks."""
