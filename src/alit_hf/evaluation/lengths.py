"""The lengths of a model's codes, and which of them an image needs."""

import numpy as np

from alit_hf.model.configuration_alit import ALITConfig


def code_lengths(config: ALITConfig) -> list[int]:
    """Number of tokens after each rollout, fewest first."""
    return list(range(config.tokens_per_rollout, config.max_tokens + 1, config.tokens_per_rollout))


def smallest_satisfying(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """
    The rollout that `ALITModel.encode(threshold=)` ends with: the first whose score is below the threshold, else the
    last.

    Args:
        scores (`np.ndarray` of shape `(N, K)`): a token selection criterion's value after each of K rollouts.
        threshold (`float`)

    Returns:
        rollouts in 0 … K − 1, int64 `(N,)`, and whether the score there is below the threshold, bool `(N,)`.
    """
    # In float32, as in `ALITModel.encode`.
    is_below = np.asarray(scores, dtype=np.float32) < np.float32(threshold)
    satisfied = is_below.any(axis=1)
    return np.where(satisfied, is_below.argmax(axis=1), is_below.shape[1] - 1), satisfied


__all__ = ["code_lengths", "smallest_satisfying"]
