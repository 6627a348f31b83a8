"""How good a model's pictures are at every length, compared with thumbnails, JPEG, WebP and AVIF of the same images.

One subject per file; nothing is imported here. `run.evaluate_model` is what `alit evaluate` calls.
"""
