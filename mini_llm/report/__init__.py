"""Report: one honest page about a run, made of what it left behind."""
