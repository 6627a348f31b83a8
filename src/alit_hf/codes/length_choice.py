"""What decides how many tokens a picture gets. Imports nothing heavy, for the command line's help."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LengthChoice:
    """
    A threshold for each picture's own length, or one length for all (paper section 3).

    Args:
        threshold (`float`, *optional*): a picture gets the fewest tokens whose score is below it.
        num_tokens (`int`, *optional*): every picture gets so many. Exactly one of both is to be given.
        criterion (`str`, *optional*, defaults to `"l1"`): of `selection.criterion_names()`; what the threshold is
            compared with.
    """

    threshold: float | None = None
    num_tokens: int | None = None
    criterion: str = "l1"


__all__ = ["LengthChoice"]
