"""Tools for maintainers of this repository, which make and check the checkpoint inside the package."""
