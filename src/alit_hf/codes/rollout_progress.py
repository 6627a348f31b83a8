"""Progress within a batch, which can take long: with every rollout."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.progress import ProgressBar


@contextmanager
def rollout_progress(model: ALITModel, progress: ProgressBar, num_images: int) -> Iterator[None]:
    """
    While a batch is computed, advances a bar of images with every rollout of each, up to the batch's end. Images that
    need fewer rollouts are at their end when the caller counts the batch as done.
    """
    end = progress.done + num_images

    def advance(encoder: nn.Module, inputs: tuple, hidden_states) -> None:
        progress.advance(len(hidden_states) / model.config.max_rollouts, end)

    handle = model.encoder.register_forward_hook(advance)
    try:
        yield
    finally:
        handle.remove()


__all__ = ["rollout_progress"]
