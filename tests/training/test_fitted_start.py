import pytest
import torch
import torch.nn.functional as F
from tiny_config import tiny_images, tiny_model

from training.fitted_start import fit_head, fit_projection, fitted_start
from training.spatial_start import spatial_start


@pytest.fixture
def started():
    def make(base: str = "vqgan", quantize: bool = True, **fields):
        model = tiny_model(base, quantize, hidden_size=64, tokens_per_rollout=16, initializer_range=0.02, **fields)
        spatial_start(model)
        return model

    return make


def run(model, images) -> list:
    with torch.no_grad():
        return list(model.rollouts(images, return_reconstruction=False))


def test_latents_start_as_what_differs_between_images(started):
    model, images = started(), tiny_images(16)
    seen = []
    model.latent_projection.register_forward_hook(lambda *call: seen.append(call[-1]))

    def share_of_images() -> float:
        seen.clear()
        run(model, images)
        latents = torch.cat(seen, dim=1)
        return ((latents - latents.mean(dim=0)).var() / latents.var()).item()

    before = share_of_images()
    fit_projection(model, images)
    assert share_of_images() > 1.2 * before
    latents = torch.cat(seen, dim=1)
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-3
    assert ((latents.flatten(0, 1).var(dim=0) > 0.1) & (latents.flatten(0, 1).var(dim=0) < 1.05)).all()


def test_more_tokens_say_more_of_held_out_latents_without_training(started):
    model, images = started("kl"), tiny_images(8, seed=2)
    fitted_start(model, tiny_images(32, seed=1))
    with torch.no_grad():
        target = model.base_tokenizer.encode(images).flatten(2).transpose(1, 2)
    errors = [F.mse_loss(rollout.decoder_output, target) for rollout in run(model, images)]
    assert errors[-1] < errors[0] < target.var(dim=(0, 1)).mean()


def test_more_tokens_say_more_of_held_out_codes_without_training(started):
    model, images = started("vqgan"), tiny_images(8, seed=2)
    fitted_start(model, tiny_images(32, seed=1))
    with torch.no_grad():
        codes = model.base_tokenizer.codes(model.base_tokenizer.encode(images)).flatten()
    losses = [F.cross_entropy(rollout.decoder_output.flatten(0, 1), codes) for rollout in run(model, images)]
    knowing_nothing = torch.tensor(24).log()
    assert losses[-1] < losses[0] < 0.6 * knowing_nothing


def test_the_codebook_starts_from_latents(started):
    model = started()
    fitted_start(model, tiny_images(16))
    assert len(run(model, tiny_images(16))[-1].token_ids.unique()) > 0.5 * model.config.codebook_size


def test_continuous_latents_need_no_codebook(started):
    model = started(quantize=False)
    fitted_start(model, tiny_images(16))
    assert run(model, tiny_images(2))[-1].token_ids is None


def test_the_head_alone_is_fitted_by_fit_head(started):
    model = started()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_head(model, tiny_images(16))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder.head.fc2.weight", "decoder.head.fc2.bias"}


def test_a_codebook_larger_than_the_batchs_latents_is_filled_with_copies_of_them(started):
    model = started(codebook_size=512)
    seen = []
    model.quantizer.register_forward_hook(lambda _, arguments, output: seen.append(arguments[0]))
    fitted_start(model, tiny_images(2))
    codes = F.normalize(model.quantizer.codebook.weight, dim=-1)
    assert len(codes.unique(dim=0)) == 512
    # The first pass is before the projection is fitted.
    rollouts = model.config.max_rollouts
    latents = F.normalize(torch.cat([one.flatten(0, 1) for one in seen[rollouts : 2 * rollouts]]), dim=-1)
    assert len(latents) < 512
    assert (codes @ latents.T).max(dim=1).values.min() > 0.7
