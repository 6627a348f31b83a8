"""How many tokens a picture gets. Imports nothing heavy, so that the command line's help is quick."""

import argparse
from dataclasses import dataclass

from alit_hf.utils.option_types import finite_number


DEFAULT_THRESHOLD = 0.1
"""L1 below which a picture has enough tokens, by default."""


@dataclass(frozen=True, kw_only=True)
class LengthChoice:
    """
    A threshold for each picture's own length, or one length for all (paper section 3).

    Args:
        threshold (`float`, *optional*): a picture gets the fewest tokens whose score is below it (above it for
            criteria where higher is better).
        num_tokens (`int`, *optional*): every picture gets this many. Exactly one of `threshold` and `num_tokens` must
            be given.
        criterion (`str`, *optional*, defaults to `"l1"`): the token selection criterion that the threshold is compared
            with, one of `selection.criterion_names()`.
        confidence (`float`, *optional*): lengths are chosen by the model's length predictor, with this probability of
            meeting the threshold.
    """

    threshold: float | None = None
    num_tokens: int | None = None
    criterion: str = "l1"
    confidence: float | None = None


def add_threshold_argument(parser: argparse.ArgumentParser) -> None:
    """`--threshold`, for commands that choose lengths by L1 alone."""
    parser.add_argument(
        "--threshold",
        metavar="T",
        type=finite_number,
        default=DEFAULT_THRESHOLD,
        help="L1 below which a picture has enough tokens (default: %(default)s)",
    )


__all__ = ["DEFAULT_THRESHOLD", "LengthChoice", "add_threshold_argument"]
