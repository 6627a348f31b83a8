"""Images of a training run: which one comes when, its crop, and cached base latents."""
