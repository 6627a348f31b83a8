"""Training losses, one module a subject: `distillation`, `perceptual`, `adversarial` and `codebook` (codebook health).

Nothing is imported here, so that `python -m alit_hf.losses.perceptual` runs its module once.
"""
