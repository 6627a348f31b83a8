"""Images of a training run: their order, their crops, and cached base latents."""
