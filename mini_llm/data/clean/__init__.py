"""Raw text from the web becomes text worth learning from."""
