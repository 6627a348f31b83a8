"""The training loop shared by all stages, and its parts."""
