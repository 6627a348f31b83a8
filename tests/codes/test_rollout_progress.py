"""A bar of images advances within a batch, by rollouts."""

import pytest
import torch
from tiny_model import tiny_config

from alit_hf import ALITModel
from alit_hf.codes.rollout_progress import rollout_progress
from alit_hf.utils.progress import ProgressBar


@pytest.fixture
def model() -> ALITModel:
    return ALITModel(tiny_config()).eval()


@pytest.fixture
def steps(monkeypatch) -> list[float]:
    """Where a bar was after each of its moves."""
    seen = []
    advance = ProgressBar.advance

    def watched(bar: ProgressBar, share: float, end: float) -> None:
        advance(bar, share, end)
        seen.append(bar.n)

    monkeypatch.setattr(ProgressBar, "advance", watched)
    return seen


@torch.no_grad()
def test_every_rollout_of_every_image_is_a_share_of_it(model, steps):
    with ProgressBar(total=9, initial=3) as bar:
        with rollout_progress(model, bar, 2):
            model.encode(torch.rand(2, 3, 32, 32), threshold=-1.0)
        assert steps == pytest.approx([3 + 2 / 3, 3 + 4 / 3, 5])
        bar.update(2)
        assert bar.n == pytest.approx(5)


@torch.no_grad()
def test_images_that_leave_the_batch_are_done_at_its_end(model, steps):
    with ProgressBar(total=9) as bar:
        with rollout_progress(model, bar, 2):
            model.encode(torch.rand(2, 3, 32, 32), threshold=torch.tensor([9.0, -1.0]))
        assert steps == pytest.approx([2 / 3, 1, 4 / 3])
        bar.update(2)
        assert bar.n == pytest.approx(2)


@torch.no_grad()
def test_more_than_one_pass_does_not_lead_beyond_the_batch(model, steps):
    with ProgressBar(total=9) as bar, rollout_progress(model, bar, 1):
        for _ in range(2):
            model.encode(torch.rand(1, 3, 32, 32), num_tokens=8)
    assert steps == pytest.approx([1 / 3, 2 / 3, 1, 1])


@torch.no_grad()
def test_nothing_stays_in_the_model(model, steps):
    with ProgressBar(total=1) as bar, pytest.raises(RuntimeError), rollout_progress(model, bar, 1):
        raise RuntimeError("out of memory")
    model.encode(torch.rand(1, 3, 32, 32), num_tokens=4)
    assert steps == []
