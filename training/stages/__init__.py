"""The stages of training, one per file, and their registry."""
