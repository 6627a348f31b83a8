"""Grids of pictures to look at."""

import torch
from PIL import Image, ImageDraw


_CAPTION_HEIGHT = 14


def picture_grid(columns: dict[str, torch.Tensor]) -> Image.Image:
    """One column for each name, one row for each image; pixels `(B, 3, H, W)`, clamped to [0, 1]."""
    count, _, height, width = next(iter(columns.values())).shape
    grid = Image.new("RGB", (width * len(columns), height * count + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(grid)
    for column, (name, pixels) in enumerate(columns.items()):
        draw.text((column * width + 2, 1), name, fill="black")
        pixels = (pixels.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for row, picture in enumerate(pixels):
            grid.paste(Image.fromarray(picture), (column * width, row * height + _CAPTION_HEIGHT))
    return grid
