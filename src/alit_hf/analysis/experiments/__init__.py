"""The paper's experiments, one file a question. `analysis/registry.py` lists them."""
