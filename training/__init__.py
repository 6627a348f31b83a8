"""Training of ALIT and its base tokenizer. `training/train.py` is the entry point."""
