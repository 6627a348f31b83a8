"""Token selection criteria: scores are per image."""

import math

import pytest
import torch

from alit_hf.model import selection
from alit_hf.model.selection import criterion_names, register_criterion, resolve_criterion, score_images


ORIGINAL = torch.full((3, 3, 8, 6), 0.5)
# Off by a known amount in every pixel, in half of the pixels, and in none.
RECONSTRUCTION = ORIGINAL.clone()
RECONSTRUCTION[0] += 0.1
RECONSTRUCTION[1, :, :4] -= 0.2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [0.1, 0.1, 0.0]),
        ("l2", [0.01, 0.02, 0.0]),
        ("psnr", [20.0, -10 * math.log10(0.02), math.inf]),
    ],
)
def test_scores_are_those_of_each_image(name, expected):
    scores = score_images(resolve_criterion(name), RECONSTRUCTION, ORIGINAL)
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.mark.parametrize("name", ["l1", "l2", "psnr"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_pictures_are_float32(name, dtype):
    original = torch.rand(2, 3, 64, 64)
    reconstruction = (original + 0.1 * torch.rand(original.shape)).to(dtype)
    scores = score_images(resolve_criterion(name), reconstruction, original)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, resolve_criterion(name)(reconstruction.double(), original.double()).float())


@pytest.mark.parametrize("criterion", ["L1", "fid", "", None, 3, ["l1"]])
def test_unknown_criteria_are_refused_with_the_known_ones(criterion):
    with pytest.raises(ValueError, match=r"l1.*l2.*psnr.*callable") as error:
        resolve_criterion(criterion)
    assert repr(criterion) in str(error.value)


def test_registered_criteria_are_built_when_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(selection, "_FACTORIES", dict(selection._FACTORIES))
    built = []
    register_criterion(
        "brightness", lambda: built.append(1) or (lambda reconstruction, _: reconstruction.mean((1, 2, 3)))
    )
    assert "brightness" in criterion_names()
    assert not built
    scores = score_images(resolve_criterion("brightness"), RECONSTRUCTION, ORIGINAL)
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.4, 0.5]))
    assert built == [1]


@pytest.mark.parametrize(
    "criterion",
    [
        lambda reconstruction, original: (reconstruction - original).abs().mean(),
        lambda reconstruction, original: (reconstruction - original).abs().mean((2, 3)),
        lambda reconstruction, original: (reconstruction - original).abs().mean((1, 2, 3))[:-1],
        lambda reconstruction, original: [0.1] * len(original),
        lambda reconstruction, original: None,
    ],
    ids=["scalar", "per channel", "too few", "list", "none"],
)
def test_criteria_must_give_one_score_an_image(criterion):
    with pytest.raises(ValueError, match=r"one score an image, shape \(3,\)"):
        score_images(criterion, RECONSTRUCTION, ORIGINAL)
