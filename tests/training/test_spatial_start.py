import pytest
import torch
from tiny_config import tiny_config, tiny_model

from training.spatial_start import check_spatial_start, spatial_start


@pytest.fixture
def model():
    model = tiny_model(image_size=[32, 48], hidden_size=128, max_rollouts=8, initializer_range=0.02)
    spatial_start(model)
    model.set_attn_implementation("eager")
    return model


def places_of_latents(model) -> torch.Tensor:
    """The grid position nearest to each latent token, (T,)."""
    latents = model.latent_tokens.rollout_embeddings.flatten(0, 1)
    assert torch.equal(latents, model.decoder.latent_position_embeddings)
    return torch.cdist(latents, model.embeddings.position_embeddings[0, 1:]).argmin(dim=1)


def distances(model, position: int) -> torch.Tensor:
    """City-block distance of every grid position from one, in cells."""
    columns = model.config.grid_size[1]
    positions = torch.arange(model.config.num_positions)
    return (positions // columns - position // columns).abs() + (positions % columns - position % columns).abs()


def test_near_positions_are_alike_and_all_differ(model):
    rows, columns = model.config.grid_size
    for module in (model.embeddings, model.decoder):
        grid = module.position_embeddings[0, 1:].unflatten(0, (rows, columns))
        differences = (grid - grid[3, 5]).norm(dim=-1)
        assert (differences > 0).sum() == rows * columns - 1
        for near, far in (((3, 6), (3, 8)), ((4, 5), (6, 5)), ((2, 4), (7, 11))):
            assert differences[near] < differences[far]


def test_every_first_part_of_the_latents_covers_the_image(model):
    config = model.config
    rows, columns = config.grid_size
    places = places_of_latents(model)
    upper, left = places // columns < rows / 2, places % columns < columns / 2
    for rollouts in (4, 8):
        first = slice(rollouts * config.tokens_per_rollout)
        for quarter in (upper & left, upper & ~left, ~upper & left, ~upper & ~left):
            assert quarter[first].float().mean().item() == pytest.approx(0.25, abs=0.15)


def test_as_many_latents_as_positions_have_one_each():
    model = tiny_model(hidden_size=128, tokens_per_rollout=8, max_rollouts=8, initializer_range=0.02)
    spatial_start(model)
    assert len(places_of_latents(model).unique()) == model.config.num_positions


def test_latents_read_the_image_around_their_place(model):
    with torch.no_grad():
        output = model(torch.full((1, 3, 32, 48), 0.5), num_tokens=3, output_attentions=True)
    num_positions = model.config.num_positions
    narrowest, widest = (output.attentions[0][0, head, -3:] for head in (0, 2))
    for token, place in enumerate(places_of_latents(model)[:3].tolist()):
        near = distances(model, place) <= 1
        of_image = narrowest[token, 1 : 1 + num_positions]
        assert of_image.argmax() == place
        assert of_image[near].sum() > 0.9 * narrowest[token].sum()
        assert widest[token, 1 : 1 + num_positions][near].sum() < 0.8


def test_grid_positions_read_the_latents_around_them(model):
    num_tokens = model.config.max_tokens
    with torch.no_grad():
        output = model(torch.full((1, 3, 32, 48), 0.5), output_decoder_attentions=True)
    narrowest = output.decoder_attentions[0][0, 0, 1:-num_tokens]
    assert narrowest[:, -num_tokens:].sum(dim=1).min() > 0.9
    places = places_of_latents(model)
    for place in places.tolist():
        assert distances(model, place)[places[narrowest[place, -num_tokens:].argmax()]] <= 1


@pytest.mark.parametrize("sizes", [{"num_attention_heads": 1}, {"num_attention_heads": 8}, {"hidden_size": 32}])
def test_sizes_without_room_are_refused(sizes):
    config = tiny_config(**{"hidden_size": 64, **sizes})
    with pytest.raises(ValueError, match=r"`loss.spatial_start` is True, but the model has"):
        check_spatial_start(config)
