"""The number of images, for messages."""


def image_count(number: int) -> str:
    """`1 image`, `2 images`."""
    return f"{number} image" + ("" if number == 1 else "s")


__all__ = ["image_count"]
