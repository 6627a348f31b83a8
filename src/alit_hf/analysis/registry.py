"""Which analyses there are. Imports none of them: the command line's help is about all, a run about one."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .analysis import Analysis


ANALYSES = {
    "thresholds": "how many images each length satisfies, over a sweep of L1 thresholds (Fig. 2)",
    "attention": "where latent tokens look, and whether at less and less over rollouts (Figs. 3, 11-13)",
    "segmentation": "how well attention maps cover the segments that people see (Tab. 2)",
}
"""What each analysis asks, by name. The name is that of the file, too."""


def load_analysis(name: str) -> "type[Analysis]":
    """
    The class of an analysis.

    Raises:
        `ModuleNotFoundError`: a package is not installed that the analysis needs.
        `ValueError`: for a name that is not in `ANALYSES`.
    """
    if name not in ANALYSES:
        raise ValueError(f"`name` is {name!r}, it must be one of {', '.join(ANALYSES)}.")
    return importlib.import_module(f".{name}", __package__).ANALYSIS


__all__ = ["ANALYSES", "load_analysis"]
