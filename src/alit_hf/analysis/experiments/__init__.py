"""The paper's experiments, one file per question. `analysis/registry.py` lists them."""
