"""Fixed networks that judge pictures: LPIPS and EfficientNet-Lite0.

Nothing is imported here, so that `python -m alit_hf.networks.lpips` runs its module only once.
"""
