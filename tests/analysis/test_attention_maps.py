"""Maps of latent tokens show where the tokens look, in the layer, the rollout and the place asked for."""

import pytest
import torch
from planted_attention import planted_model
from tiny_config import tiny_images, tiny_model

from alit_hf.analysis.attention_maps import SIDES, AttentionSource, maps_of_weights, rollout_maps


@pytest.fixture(scope="module")
def eager_model():
    model = tiny_model(num_decoder_layers=2)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["square", "wide"])
@pytest.mark.parametrize("side", SIDES)
def test_a_planted_pattern_is_found_in_every_layer_and_rollout(side, size):
    rows, columns = size[0] // 4, size[1] // 4
    num_tokens, num_positions = 12, rows * columns
    # The corners are where a map that is off by one falls out of the grid, or into another row.
    corners = torch.tensor([0, columns - 1, num_positions - columns, num_positions - 1])
    places = torch.stack([torch.randperm(num_positions)[:num_tokens] for _ in range(2)])
    places[0, [0, 4, 8, 11]] = corners
    model = planted_model(side, places, image_size=list(size))
    pixel_values = tiny_images(2, *size)
    for layer in range(2):
        found = rollout_maps(model, pixel_values, AttentionSource(side, layer))
        assert [maps.shape for maps in found] == [(2, count, rows, columns) for count in (3, 6, 9, 12)]
        for maps in found:
            expected = places[layer, : maps.shape[1]].expand(2, -1)
            assert torch.equal(maps.flatten(-2).argmax(dim=-1), expected)
            assert (maps.flatten(-2).amax(dim=-1) > 0.9).all()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rollout", [0, 2])
def test_maps_are_cut_out_of_the_attentions_that_the_model_returns(eager_model, layer, rollout):
    pixel_values = tiny_images()
    with torch.no_grad():
        output = eager_model(
            pixel_values, num_tokens=3 * (rollout + 1), output_attentions=True, output_decoder_attentions=True
        )
    decoder = output.decoder_attentions[layer].mean(dim=1)[:, 1:65, 65:].transpose(1, 2)
    encoder = output.attentions[2 * rollout + layer].mean(dim=1)[:, 65:, 1:65]
    for side, expected in (("decoder", decoder), ("encoder", encoder)):
        found = rollout_maps(eager_model, pixel_values, AttentionSource(side, layer))[rollout]
        expected = expected / expected.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(found.flatten(-2), expected)


def test_negative_layers_count_from_the_last(eager_model):
    pixel_values = tiny_images(1)
    last, named, first = (
        rollout_maps(eager_model, pixel_values, AttentionSource("encoder", layer))[-1] for layer in (-1, 1, 0)
    )
    assert torch.equal(last, named)
    assert not torch.allclose(last, first)


def test_a_token_that_nobody_attends_to_has_a_uniform_map():
    weights = torch.zeros(1, 2, 7, 7)
    weights[..., 0, 0] = 1
    weights[..., 1:5, 5] = torch.tensor([0, 0, 0.2, 0.2])
    maps = maps_of_weights(weights, (2, 2), "decoder")
    assert maps[0].tolist() == [[[0, 0], [0.5, 0.5]], [[0.25, 0.25], [0.25, 0.25]]]


def test_recording_leaves_nothing_behind(eager_model):
    rollout_maps(eager_model, tiny_images(1), AttentionSource())
    assert not any(module._forward_hooks for module in eager_model.modules())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (AttentionSource("middle"), "`side` is 'middle', it must be one of decoder, encoder"),
        (AttentionSource("decoder", 2), "`layer` is 2, the decoder's layers are -2 to 1"),
        (AttentionSource("encoder", -3), "`layer` is -3, the encoder's layers are -2 to 1"),
    ],
)
def test_layers_that_do_not_exist_are_refused(eager_model, source, message):
    with pytest.raises(ValueError, match=message):
        rollout_maps(eager_model, tiny_images(1), source)


def test_attention_without_weights_is_refused():
    with pytest.raises(ValueError, match="sdpa attention has no weights to return"):
        rollout_maps(tiny_model(), tiny_images(1), AttentionSource())


def test_a_grid_of_one_position_is_refused():
    with pytest.raises(ValueError, match="one position"):
        AttentionSource().check(tiny_model(image_size=4).config)
