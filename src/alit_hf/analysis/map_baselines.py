"""Maps that know nothing of an image, for comparison with those of a model."""

import torch


def scattered_maps(num_maps: int, grid_size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Maps `(num_maps, rows, columns)` whose highest values are at random positions."""
    return torch.rand(num_maps, *grid_size, generator=generator)


def disc_maps(num_maps: int, grid_size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Maps `(num_maps, rows, columns)` that fall off around a random place each: thresholded they are discs."""
    return _discs(torch.rand(num_maps, 2, generator=generator) * torch.tensor(grid_size), grid_size)


def center_map(grid_size: tuple[int, int]) -> torch.Tensor:
    """One map `(1, rows, columns)` that falls off around the image's centre."""
    return _discs(torch.tensor([grid_size]) / 2, grid_size)


def _discs(centers: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Negative squared distances of the positions' centres from places `(num_maps, 2)`, in grid positions."""
    rows, columns = (torch.arange(size) + 0.5 for size in grid_size)
    return -((rows[:, None] - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2)


__all__ = ["disc_maps", "center_map", "scattered_maps"]
