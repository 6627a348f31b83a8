"""How far pictures are from their originals."""

import torch
from random_lpips import random_lpips

from alit_hf.evaluation.scores import ImageScorer


def test_scores_of_another_original_are_its_own(monkeypatch):
    """What LPIPS makes of an original is kept for its next picture, and must not be taken for another's."""
    monkeypatch.setattr("alit_hf.evaluation.scores.LPIPS", random_lpips)
    scorer = ImageScorer(["alex"], torch.device("cpu"))
    lpips = random_lpips("alex", normalize=True)
    torch.manual_seed(0)
    first, second, *pictures = torch.rand(4, 2, 3, 32, 32)
    for original, picture in ((first, pictures[0]), (first, pictures[1]), (second, pictures[1]), (first, second)):
        torch.testing.assert_close(scorer(picture, original)["lpips_alex"], lpips(picture, original))
