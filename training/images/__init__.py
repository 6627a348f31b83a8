"""Images of a training run: their order, their crops, and cached outputs of a frozen part."""
