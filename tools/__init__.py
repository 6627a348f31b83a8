"""What only maintainers of this repository run: it makes and checks the checkpoint inside the package."""
