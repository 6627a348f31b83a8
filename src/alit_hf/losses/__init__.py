"""Training losses, one module per subject: `distillation`, `adversarial` and `codebook` (codebook health)."""
