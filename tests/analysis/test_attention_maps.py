"""Maps of latent tokens show where the tokens look, in the layer, the rollout and the place asked for."""

import pytest
import torch
from planted_attention import planted_model
from tiny_config import tiny_config, tiny_images, tiny_model

from alit_hf.analysis.attention_maps import SIDES, AttentionSource, maps_of_weights, rollout_maps


def eager(model):
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def model():
    return eager(tiny_model(num_decoder_layers=2))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["square", "wide"])
@pytest.mark.parametrize("side", SIDES)
def test_a_planted_pattern_is_found_in_every_layer_and_rollout(side, size):
    rows, columns = size[0] // 4, size[1] // 4
    num_tokens, num_positions = 12, rows * columns
    places = torch.stack([torch.randperm(num_positions)[:num_tokens] for _ in range(2)])
    # Where a map that is off by one falls out of the grid or into another row.
    corners = torch.tensor([0, columns - 1, num_positions - columns, num_positions - 1])
    places[0, [0, 4, 8, 11]] = corners
    sources = [AttentionSource(side, layer) for layer in range(2)]
    found = rollout_maps(planted_model(side, places, image_size=list(size)), tiny_images(2, *size), sources)
    for source in sources:
        assert [maps.shape for maps in found[source]] == [(2, count, rows, columns) for count in (3, 6, 9, 12)]
        for maps in found[source]:
            expected = places[source.layer, : maps.shape[1]].expand(2, -1)
            assert torch.equal(maps.flatten(-2).argmax(dim=-1), expected)


@pytest.mark.parametrize("rollout", [0, 2])
def test_maps_are_cut_out_of_the_attentions_that_the_model_returns(model, rollout):
    pixel_values = tiny_images()
    with torch.no_grad():
        output = model(
            pixel_values, num_tokens=3 * (rollout + 1), output_attentions=True, output_decoder_attentions=True
        )
    sources = [AttentionSource(side, layer) for side in SIDES for layer in range(2)]
    found = rollout_maps(model, pixel_values, sources)
    for source in sources:
        if source.side == "decoder":
            expected = output.decoder_attentions[source.layer].mean(dim=1)[:, 1:65, 65:].transpose(1, 2)
        else:
            expected = output.attentions[2 * rollout + source.layer].mean(dim=1)[:, 65:, 1:65]
        expected = expected / expected.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(found[source][rollout].flatten(-2), expected)


def test_halting_adds_no_runs():
    """Between rollouts it needs the decoder's output, too."""
    model = eager(tiny_model(halting_threshold=0.01))
    source = AttentionSource("decoder", 0)
    assert [maps.shape[1] for maps in rollout_maps(model, tiny_images(1), [source])[source]] == [3, 6, 9, 12]


def test_a_token_that_nobody_attends_to_has_a_uniform_map():
    weights = torch.zeros(1, 2, 7, 7)
    weights[..., 0, 0] = 1
    weights[..., 1:5, 5] = torch.tensor([0, 0, 0.25, 0.25])
    maps = maps_of_weights(weights, (2, 2), "decoder")
    assert maps[0].tolist() == [[[0, 0], [0.5, 0.5]], [[0.25, 0.25], [0.25, 0.25]]]


def test_nan_is_no_map():
    with pytest.raises(ValueError, match="attention has NaN"):
        maps_of_weights(torch.full((1, 2, 7, 7), torch.nan), (2, 2), "encoder")


def test_recording_ends_with_the_call(model):
    attention = model.decoder.layers[0].attention
    before = len(attention._forward_hooks)
    rollout_maps(model, tiny_images(1), [AttentionSource("decoder", 0)])
    assert len(attention._forward_hooks) == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (AttentionSource("middle", 0), "`side` is 'middle', it must be one of decoder, encoder"),
        (AttentionSource("decoder", 1), "`layer` is 1, the layers of the decoder are 0 to 0"),
        (AttentionSource("encoder", -1), "`layer` is -1, the layers of the encoder are 0 to 1"),
    ],
)
def test_layers_that_do_not_exist_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        source.check(tiny_config())


def test_attention_without_weights_is_refused():
    with pytest.raises(ValueError, match="sdpa attention has no weights to return"):
        rollout_maps(tiny_model(), tiny_images(1), [AttentionSource("decoder", 0)])


def test_a_grid_of_one_position_is_refused():
    with pytest.raises(ValueError, match="one position"):
        AttentionSource("decoder", 0).check(tiny_config(image_size=4))
