import pytest
import torch
from tiny_config import tiny_images, tiny_model

from training.spatial_start import informative_projection, spatial_start


@pytest.fixture
def model():
    model = tiny_model(image_size=[32, 48], max_rollouts=8, initializer_range=0.02)
    spatial_start(model)
    return model


def test_near_positions_are_alike_and_all_differ(model):
    rows, columns = model.config.grid_size
    for module in (model.embeddings, model.decoder):
        grid = module.position_embeddings[0, 1:].unflatten(0, (rows, columns))
        assert grid.norm(dim=-1).mean().item() == pytest.approx(1, abs=1e-3)
        distances = (grid - grid[3, 5]).norm(dim=-1)
        assert (distances > 0).sum() == rows * columns - 1
        for near, far in (((3, 6), (3, 8)), ((4, 5), (6, 5)), ((2, 4), (7, 11))):
            assert distances[near] < distances[far]


def test_every_first_part_of_the_latents_covers_the_image(model):
    config = model.config
    rows, columns = config.grid_size
    grid = model.embeddings.position_embeddings[0, 1:]
    places = model.latent_tokens.rollout_embeddings.flatten(0, 1)
    assert torch.equal(places, model.decoder.latent_position_embeddings)
    nearest = torch.cdist(places, grid).argmin(dim=1)
    upper, left = nearest // columns < rows / 2, nearest % columns < columns / 2
    for rollouts in (4, 8):
        first = slice(rollouts * config.tokens_per_rollout)
        for quarter in (upper & left, upper & ~left, ~upper & left, ~upper & ~left):
            assert quarter[first].float().mean().item() == pytest.approx(0.25, abs=0.15)


def test_attention_starts_between_near_places(model):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(torch.full((1, 3, 32, 48), 0.5), num_tokens=3, output_attentions=True)
    rows, columns = model.config.grid_size
    grid = model.embeddings.position_embeddings[0, 1:]
    nearest = torch.cdist(model.latent_tokens.rollout_embeddings[0], grid).argmin(dim=1)
    attention = output.attentions[0][0].mean(dim=0)[-3:, 1 : 1 + rows * columns]
    for token in range(3):
        row, column = divmod(int(nearest[token]), columns)
        far = (torch.arange(rows * columns) // columns - row).abs() + (
            torch.arange(rows * columns) % columns - column
        ).abs()
        assert attention[token][far <= 2].mean() > 1.5 * attention[token][far > 6].mean()


def test_latents_start_as_what_differs_between_images(model):
    images = tiny_images(16, 32, 48)

    def share_of_images():
        latents = []
        hook = model.latent_projection.register_forward_hook(lambda *call: latents.append(call[-1]))
        for _ in model.rollouts(images, return_reconstruction=False):
            pass
        hook.remove()
        latents = torch.cat(latents, dim=1)
        return latents, (latents - latents.mean(dim=0)).var() / latents.var()

    with torch.no_grad():
        _, before = share_of_images()
        informative_projection(model, images)
        latents, after = share_of_images()
    assert after > 1.2 * before
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-3
    torch.testing.assert_close(latents.flatten(0, 1).var(dim=0), torch.ones(5), atol=0.05, rtol=0)
