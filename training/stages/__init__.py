"""The stages of training, one a file, and the registry of them."""
