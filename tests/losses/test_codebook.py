import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from alit_hf.losses.adversarial import LeCamRegularizer, adaptive_weight
from alit_hf.losses.codebook import (
    code_counts,
    codebook_usage,
    kmeans_init,
    perplexity,
    revive_dead_codes,
    sample_init,
    sum_over_ranks,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- measuring ---


def test_counts_leave_out_padding():
    assert code_counts(torch.tensor([[0, 3, 3], [1, -1, -1]]), 5).tolist() == [1, 1, 0, 2, 0]
    assert code_counts(torch.full((2, 2), -1), 3).tolist() == [0, 0, 0]


def test_usage_and_perplexity_by_hand():
    counts = torch.tensor([2, 1, 1, 0])
    assert codebook_usage(counts) == 0.75
    # Entropy of (1/2, 1/4, 1/4) is 1.5 bits.
    assert perplexity(counts).item() == pytest.approx(2**1.5)


@pytest.mark.parametrize(
    ("counts", "usage", "value"), [([7] * 6, 1.0, 6.0), ([0, 9, 0], 1 / 3, 1.0), ([0, 0], 0.0, 1.0)]
)
def test_extremes(counts, usage, value):
    assert codebook_usage(torch.tensor(counts)).item() == pytest.approx(usage)
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(value)


def test_counts_add_up_over_steps():
    steps = [torch.randint(10, (3, 7)) for _ in range(4)]
    added = sum(code_counts(ids, 10) for ids in steps)
    assert torch.equal(added, code_counts(torch.cat(steps), 10))
    assert added.sum() == 84


# --- revival ---


def test_revival_replaces_dead_codes_only_and_by_different_latents():
    codebook = torch.nn.Parameter(torch.randn(8, 4))
    before = codebook.detach().clone()
    counts = torch.tensor([5, 0, 1, 0, 9, 2, 0, 1])
    latents = torch.randn(20, 4)
    revived = revive_dead_codes(codebook, counts, latents, cosine=False, generator=generator())
    assert revived.tolist() == (counts == 0).tolist()
    assert torch.equal(codebook[~revived], before[~revived])
    sources = torch.cdist(codebook[revived], latents)
    assert sources.min(dim=1).values.max() < 1e-6
    assert len(sources.argmin(dim=1).unique()) == 3
    assert codebook.requires_grad
    assert codebook.grad_fn is None


def test_min_count_says_what_is_dead():
    codebook = torch.randn(4, 2)
    counts = torch.tensor([0, 1, 2, 3])
    revived = revive_dead_codes(codebook, counts, torch.randn(9, 2), cosine=False, min_count=2)
    assert revived.tolist() == [True, True, False, False]


def test_revived_directions_have_the_codes_mean_length():
    codebook = F.normalize(torch.randn(6, 3), dim=-1) * torch.tensor([1.0, 2, 3, 4, 5, 6]).unsqueeze(1)
    latents = 100 * torch.randn(10, 3)
    counts = torch.tensor([0, 1, 1, 1, 1, 0])
    revived = revive_dead_codes(codebook, counts, latents, cosine=True, generator=generator())
    torch.testing.assert_close(codebook[revived].norm(dim=1), torch.full((2,), 3.5))
    cosine = F.normalize(codebook[revived], dim=-1) @ F.normalize(latents, dim=-1).T
    assert cosine.max(dim=1).values.min() > 1 - 1e-5


def test_fewer_latents_than_dead_codes():
    codebook = torch.zeros(5, 2)
    latents = torch.randn(2, 2)
    revived = revive_dead_codes(codebook, torch.tensor([0, 1, 0, 0, 0]), latents, cosine=False)
    assert revived.tolist() == [True, False, True, False, False]
    assert (codebook[1] == 0).all()
    assert (codebook[3:] == 0).all()


def test_no_dead_code_no_change():
    codebook = torch.randn(3, 2)
    before = codebook.clone()
    assert not revive_dead_codes(codebook, torch.ones(3), torch.randn(4, 2), cosine=True).any()
    assert torch.equal(codebook, before)


def test_revival_follows_its_generator():
    latents = torch.randn(50, 4)
    codebooks = [torch.zeros(10, 4) for _ in range(3)]
    for codebook, seed in zip(codebooks, (1, 1, 2), strict=True):
        torch.rand(seed)  # the global state is of no account
        revive_dead_codes(codebook, torch.zeros(10), latents, cosine=False, generator=generator(seed))
    assert torch.equal(codebooks[0], codebooks[1])
    assert not torch.equal(codebooks[0], codebooks[2])


def test_revival_raises_perplexity_of_a_collapsed_codebook():
    latents = torch.randn(2000, 8)
    codebook = torch.cat([torch.randn(4, 8), 100 + torch.randn(60, 8)])

    def counts():
        return code_counts(torch.cdist(latents, codebook).argmin(dim=1), 64)

    before = perplexity(counts())
    revive_dead_codes(codebook, counts(), latents, cosine=False, generator=generator())
    assert before <= 4
    assert perplexity(counts()) > 30
    assert codebook_usage(counts()) > 0.9


def test_measuring_and_revival_do_not_wait_for_the_device():
    """Tensors of the meta device have no values: whoever reads one fails."""
    counts = code_counts(torch.zeros(3, 4, dtype=torch.long, device="meta"), 8)
    assert codebook_usage(counts).is_meta
    assert perplexity(counts).is_meta
    codebook, latents = torch.empty(8, 2, device="meta"), torch.empty(5, 2, device="meta")
    assert revive_dead_codes(codebook, counts, latents, cosine=True).shape == (8,)


# --- initialisation ---


@pytest.mark.parametrize("cosine", [False, True])
def test_sample_init_takes_different_latents(cosine):
    latents = torch.randn(30, 4)
    codes = sample_init(latents, 30, cosine, generator())
    expected = F.normalize(latents, dim=-1) if cosine else latents
    # All of them, in another order.
    assert not torch.equal(codes, expected)
    assert torch.equal(codes.sort(dim=0).values, expected.sort(dim=0).values)
    assert torch.equal(codes, sample_init(latents, 30, cosine, generator()))


def clusters(cosine):
    """Twelve tight clusters on the axes' directions; with lengths of no meaning where only directions count."""
    centres = torch.cat([torch.eye(6), -torch.eye(6)])
    points = (centres.repeat_interleave(40, dim=0) + 0.02 * torch.randn(480, 6)) * 3
    return centres * (1 if cosine else 3), points * torch.rand(480, 1).add(0.1) if cosine else points


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_lowers_the_quantisation_error_of_its_start(cosine):
    _, points = clusters(cosine)
    target = F.normalize(points, dim=-1) if cosine else points

    def error(codes):
        return torch.cdist(target, codes).min(dim=1).values.square().mean()

    start = sample_init(points, 24, cosine, generator())
    means = kmeans_init(points, 24, cosine, generator=generator())
    assert means.shape == (24, 6)
    assert means.dtype == torch.float32
    assert error(means) < 0.9 * error(start)
    if cosine:
        torch.testing.assert_close(means.norm(dim=1), torch.ones(24))


def test_kmeans_finds_the_means_of_clusters_that_it_starts_in():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    # From any two points, Lloyd's rounds end in the means of the two groups.
    means = kmeans_init(points, 2, cosine=False, generator=generator())
    assert sorted(means.flatten().tolist()) == [0.5, 11.0]


@pytest.mark.parametrize("init", [sample_init, kmeans_init])
def test_too_few_latents(init):
    with pytest.raises(ValueError, match=r"`latents` has shape \(3, 2\).*at least 4"):
        init(torch.randn(3, 2), 4, cosine=True)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`counts` has shape \(3,\).*\(4,\)"):
        revive_dead_codes(torch.randn(4, 2), torch.zeros(3), torch.randn(5, 2), cosine=True)
    with pytest.raises(ValueError, match=r"`latents` has shape \(5, 3\).*\(M, 2\)"):
        revive_dead_codes(torch.randn(4, 2), torch.zeros(4), torch.randn(5, 3), cosine=True)


# --- two ranks ---


def on_one_of_two_ranks(rank, init_file, results):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    counts = sum_over_ranks(code_counts(torch.tensor([rank, 2]), 4))
    codebook = torch.zeros(4, 2)
    latents = torch.full((6, 2), float(rank + 1))
    revived = revive_dead_codes(codebook, counts, latents, cosine=False)

    weight = torch.ones(2, requires_grad=True)
    pictures = weight * torch.tensor([1.0, 2.0])
    # Gradients at `weight`: (3, 0) and (0, 8) for one loss, (1, 0) on both ranks for the other.
    first = (pictures * torch.tensor([[3.0, 0.0], [0.0, 4.0]])[rank]).sum()
    second = pictures[0]
    lecam = LeCamRegularizer()
    lecam(torch.tensor([float(rank)]), torch.tensor([-float(rank)]))
    results[rank] = {
        "counts": counts.tolist(),
        "revived": revived.tolist(),
        "codebook": codebook.tolist(),
        "initial": sample_init(torch.randn(9, 2), 3, cosine=True).tolist(),
        "at_parameter": adaptive_weight(first, second, weight).item(),
        "at_pictures": adaptive_weight(first, second, pictures).item(),
        "average_real": lecam.average_real.item(),
    }
    dist.destroy_process_group()


def test_two_ranks_agree(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(on_one_of_two_ranks, (tmp_path / "init", results), nprocs=2)
        first, second = results[0], results[1]
    assert first == second
    assert first["counts"] == [1, 1, 2, 0]
    assert first["revived"] == [False, False, False, True]
    # The latents of rank 0.
    assert first["codebook"] == [[0, 0], [0, 0], [0, 0], [1, 1]]
    # |(3, 8) / 2| over |(1, 0)|
    assert first["at_parameter"] == pytest.approx(math.hypot(1.5, 4) / (1 + 1e-4))
    # |(3, 0), (0, 4)| over |(1, 0), (1, 0)|, both halved
    assert first["at_pictures"] == pytest.approx(2.5 / (math.sqrt(2) / 2 + 1e-4))
    assert first["average_real"] == 0.5
