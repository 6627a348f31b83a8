"""What encoding to the smallest sufficient length costs, next to the sum of its parts.

    python -m pytest -s -m benchmark tests/benchmarks/bench_early_exit.py

At the paper's `small` size with random weights, float32, one image, two CPU threads.
"""

from collections.abc import Callable

import pytest
import torch
from timing import seconds, two_threads

from alit_hf import ALITConfig, ALITModel
from alit_hf.model.selection import l1


ROLLOUTS = (1, 2, 4)
REPETITIONS = 3
MOST = 1.15


def encode_until(model: ALITModel, pixel_values: torch.Tensor, rollout: int) -> None:
    """Encodes to the smallest length, with the L1 criterion met at `rollout` (counted from 1) and not before."""
    scores = []

    def criterion(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        scores.append(l1(reconstruction, original))
        return scores[-1] - float(len(scores) == rollout) * 1000

    code = model.encode(pixel_values, threshold=0.0, criterion=criterion)
    assert code.num_tokens.item() == rollout * model.config.tokens_per_rollout
    assert len(scores) == rollout


def parts_alone(model: ALITModel, pixel_values: torch.Tensor) -> dict[str, list[Callable[[], object]]]:
    """Each part of the work as a function of its own; of those that every rollout has, one for each rollout."""
    base, config = model.base_tokenizer, model.config
    base_latents = base.encode(pixel_values)
    hidden_states, _ = model.embeddings(pixel_values, base_latents)
    parts = {"base encoding": [lambda: base.encode(pixel_values)], "encoder": [], "decoder": [], "base decoding": []}
    longest = max(ROLLOUTS) * config.tokens_per_rollout
    for index, step in enumerate(model.rollouts(pixel_values, num_tokens=longest)):
        tokens = model.latent_tokens(index)
        grid = base.expected_latents(step.decoder_output, config.grid_size)
        parts["encoder"].append(lambda h=hidden_states, n=tokens, k=index: model.encoder(h, n, k))
        parts["decoder"].append(lambda q=step.latents: model.decoder(q, config.grid_size))
        parts["base decoding"].append(lambda z=grid: base.decode(z))
        hidden_states = step.last_hidden_state
    return parts


@torch.no_grad()
def measure() -> dict[str, dict[int, float]]:
    """Seconds of encoding and of its parts, each the least of some repetitions that take turns, by rollout."""
    torch.manual_seed(0)
    model = ALITModel(ALITConfig.paper("small")).eval()
    pixel_values = torch.rand(1, 3, 256, 256)
    parts = parts_alone(model, pixel_values)
    step = model.config.tokens_per_rollout

    jobs = {(name, index): part for name, rollouts in parts.items() for index, part in enumerate(rollouts)}
    for rollout in ROLLOUTS:
        jobs["smallest length", rollout] = lambda k=rollout: encode_until(model, pixel_values, k)
        jobs["fixed length", rollout] = lambda k=rollout: model.encode(pixel_values, num_tokens=k * step)
    least = dict.fromkeys(jobs, float("inf"))
    for _ in range(REPETITIONS):
        for name, job in jobs.items():
            least[name] = min(least[name], seconds(job))

    found = {"base encoding": dict.fromkeys(ROLLOUTS, least["base encoding", 0])}
    for name in ("encoder", "decoder", "base decoding"):
        found[name] = {rollout: sum(least[name, index] for index in range(rollout)) for rollout in ROLLOUTS}
    found["sum of these"] = {rollout: sum(part[rollout] for part in found.values()) for rollout in ROLLOUTS}
    for name in ("smallest length", "fixed length"):
        found[name] = {rollout: least[name, rollout] for rollout in ROLLOUTS}
    return found


@torch.no_grad()
def decoder_passes_of_a_fixed_length() -> int:
    """Passes through the distillation decoder and the base decoder when the length is given."""
    model = ALITModel(ALITConfig.paper("small")).eval()
    passes = []
    for decoder in (model.decoder, model.base_tokenizer.model.decoder):
        decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    model.encode(torch.rand(1, 3, 256, 256), num_tokens=2 * model.config.tokens_per_rollout)
    return len(passes)


def report(found: dict[str, dict[int, float]], passes: int) -> str:
    lines = ["seconds, by the rollout that it ends at", f"{'':24}" + "".join(f"{rollout:>9}" for rollout in ROLLOUTS)]
    lines += [f"{name:24}" + "".join(f"{part[k]:9.2f}" for k in ROLLOUTS) for name, part in found.items()]
    ratios = [found["smallest length"][k] / found["sum of these"][k] for k in ROLLOUTS]
    lines.append(f"{'smallest length / sum':24}" + "".join(f"{ratio:9.3f}" for ratio in ratios))
    lines.append(f"decoder passes of a fixed length: {passes}")
    return "\n".join(lines)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_encoding_to_the_smallest_length_costs_its_parts():
    with two_threads():
        found, passes = measure(), decoder_passes_of_a_fixed_length()
    print(f"\n{report(found, passes)}")
    assert passes == 0
    for rollout in ROLLOUTS:
        assert found["smallest length"][rollout] <= MOST * found["sum of these"][rollout]
        assert found["fixed length"][rollout] < found["smallest length"][rollout]
