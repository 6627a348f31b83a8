"""Modules for `evaluate.load`, one per metric: `evaluate.load(metric_path("lpips"))`.

`evaluate` copies a module before running it, so each imports this package by its full name, one import per line.
"""

from pathlib import Path


def metric_path(name: str) -> str:
    """
    The file of a metric, for `evaluate.load`.

    Raises:
        `ValueError`: if there is no metric of that name.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    if name not in names:
        raise ValueError(f"`name` is {name!r}, it must be one of {names}.")
    return str(Path(__file__).with_name(f"{name}.py"))


__all__ = ["metric_path"]
