"""How good a model's pictures are at every length, beside what a thumbnail, JPEG and WebP make of the same images.

One subject a file, nothing is imported here. `run.evaluate_model` is what `alit evaluate` calls.
"""
