"""The list of analyses. Imports none of them: the command line's help needs all their names, a run only one."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .analysis import Analysis


ANALYSES = {
    "attention": "where latent tokens look, and whether at less and less over rollouts (Figs. 3, 11-13)",
    "complexity": "whether complex images have larger errors and need more tokens (Figs. 4-5)",
    "familiarity": "whether unfamiliar images can be told by their errors and lengths (A.2)",
    "lengths": "whether predicted lengths keep their promise, and what they cost in tokens",
    "probe": "what a linear classifier can read from frozen features (A.4)",
    "segmentation": "how well attention maps cover the segments that people see (Tab. 2)",
    "strength": "what reconstructions of every length cost weak and strong classifiers (Fig. 10)",
    "tasks": "which token selection criterion serves which task of interest (A.2, Figs. 6-9)",
    "thresholds": "how many images each length satisfies, over a sweep of L1 thresholds (Fig. 2)",
    "unfamiliar": "what pictures of any kind look like at every length (Fig. 14)",
}
"""What each analysis asks, by name. The name is also that of its file in `experiments/`."""


def load_analysis(name: str) -> "type[Analysis]":
    """
    The class of an analysis.

    Raises:
        `ModuleNotFoundError`: if a package that the analysis needs is not installed.
        `ValueError`: for a name that is not in `ANALYSES`.
    """
    if name not in ANALYSES:
        raise ValueError(f"`name` is {name!r}, it must be one of {', '.join(ANALYSES)}.")
    return importlib.import_module(f".experiments.{name}", __package__).ANALYSIS


__all__ = ["ANALYSES", "load_analysis"]
