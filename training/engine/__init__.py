"""The loop that all stages share, and what it runs on."""
