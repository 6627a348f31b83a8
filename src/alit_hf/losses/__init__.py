"""Training losses, one module a subject: `distillation`, `adversarial` and `codebook` (codebook health)."""
