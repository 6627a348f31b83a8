"""Freely usable photos that come with scikit-image."""

from PIL import Image


EXAMPLE_NAMES = ("astronaut", "cat", "coffee", "rocket")
"""NASA's and SpaceX's photos are in the public domain, the other two are CC0."""


def example_photo(name: str) -> Image.Image:
    """
    Args:
        name (`str`): one of `EXAMPLE_NAMES`.

    Raises:
        `ValueError`: for another name.
    """
    from skimage import data

    if name not in EXAMPLE_NAMES:
        raise ValueError(f"`name` is {name!r}, it must be one of {', '.join(EXAMPLE_NAMES)}.")
    return Image.fromarray(getattr(data, name)())


__all__ = ["EXAMPLE_NAMES", "example_photo"]
