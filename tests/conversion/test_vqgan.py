"""Converted VQGANs of taming-transformers and LlamaGen reconstruct as the originals do."""

import pytest
import torch
from diffusers import VQModel
from published_reference import AutoencoderKL, LlamaGenVQ, TamingVQGAN, randomise
from safetensors.torch import save_file

from alit_hf.conversion import load_original


# Five levels, a factor of 16, as in the published ones; neighbours of the same and of different width.
F16 = [32, 32, 64, 64, 96]
LAYOUTS = {
    "taming-1024": (TamingVQGAN, F16, 2, 24, 16, 1024),
    "taming-16384": (TamingVQGAN, F16, 2, 24, 16, 16384),
    "llamagen-16384": (LlamaGenVQ, F16, 2, 24, 8, 16384),
    "llamagen-1024": (LlamaGenVQ, F16, 1, 16, 8, 1024),
}


def reference(layout: str) -> TamingVQGAN:
    kind, *sizes = LAYOUTS[layout]
    model = randomise(kind(*sizes), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        # Norms that differ: where codes are compared by cosine, distances to the codes as stored choose others.
        model.quantize.embedding.weight.mul_(torch.linspace(0.5, 2, len(model.quantize.embedding.weight))[:, None])
    return model


@pytest.fixture(scope="module")
def pixels():
    """In [-1, 1], and not square."""
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_reconstructs_as_the_original(layout, pixels, tmp_path):
    original = reference(layout)
    load_original(original.state_dict()).save_pretrained(tmp_path)
    model = VQModel.from_pretrained(tmp_path)
    latents = original.encode(pixels)
    codes, ids = original.codes(latents)
    assert_close(model.encode(pixels).latents, latents)
    quantised, _, (_, _, converted_ids) = model.quantize(latents)
    assert torch.equal(converted_ids.view_as(ids), ids)
    assert len(ids.unique()) > 5
    assert_close(quantised, codes)
    expected = original.decode(codes)
    assert_close(model(pixels).sample, expected)
    assert_close(model.decode(model.encode(pixels).latents).sample, expected)


def test_the_configuration_shows_the_sizes():
    config = load_original(reference("llamagen-16384").state_dict()).config
    assert (config.num_vq_embeddings, config.vq_embed_dim, config.latent_channels) == (16384, 8, 24)
    assert (config.block_out_channels, config.layers_per_block) == (F16, 2)
    assert config.down_block_types == ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"]
    assert config.up_block_types == ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4
    assert config._pixel_range == [-1, 1]


@torch.no_grad()
def test_attention_at_other_resolutions():
    original = reference("taming-1024")
    decoder = type(original.decoder)(F16, 2, 24, mage=False, attention_levels=(1, 4))
    original.decoder = randomise(decoder, torch.Generator().manual_seed(2))
    model = load_original(original.state_dict())
    codes = torch.randn(1, 16, 3, 2)
    assert_close(model.decode(codes, force_not_quantize=True).sample, original.decode(codes))


@pytest.fixture
def weights():
    return randomise(TamingVQGAN([32, 64], 1, 8, 4, 20), torch.Generator().manual_seed(0)).state_dict()


@pytest.fixture
def llamagen_weights():
    return randomise(LlamaGenVQ([32, 64], 1, 8, 4, 20), torch.Generator().manual_seed(0)).state_dict()


class TestCheckpoints:
    def test_evaluation_mode_and_float32(self, weights):
        model = load_original({name: weight.half() for name, weight in weights.items()})
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("part", ["state_dict", "model", "ema"])
    def test_parts_of_files(self, weights, part, tmp_path):
        torch.save({"epoch": 3, part: weights, "optimizer_states": [{"step": 1}]}, tmp_path / "last.ckpt")
        model = load_original(tmp_path / "last.ckpt")
        assert torch.equal(model.post_quant_conv.weight, weights["post_quant_conv.weight"])

    def test_safetensors(self, llamagen_weights, tmp_path):
        save_file(llamagen_weights, tmp_path / "vq.safetensors")
        model = load_original(tmp_path / "vq.safetensors")
        assert torch.equal(model.post_quant_conv.weight, llamagen_weights["post_quant_conv.weight"])

    def test_losses_are_dropped(self, weights):
        losses = {"loss.discriminator.main.0.weight": torch.ones(1), "loss.perceptual_loss.lin0.model.1.weight": None}
        load_original({**weights, **dict.fromkeys(losses, torch.ones(1))})

    @pytest.mark.parametrize(
        ("name", "layout"),
        [("encoder.mid.attn_1.q.bias", "taming-transformers"), ("decoder.up.1.block.1.conv2.weight", "taming-tr")],
    )
    def test_missing_weights_are_named(self, weights, name, layout):
        del weights[name]
        with pytest.raises(ValueError, match=f"is not a VQGAN of {layout}.*: it lacks {name}"):
            load_original(weights)

    def test_missing_weights_of_llamagen_are_named(self, llamagen_weights):
        del llamagen_weights["decoder.conv_blocks.0.upsample.conv.bias"]
        with pytest.raises(ValueError, match=r"is not a VQGAN of LlamaGen: it lacks decoder\.conv_blocks\.0\.up"):
            load_original(llamagen_weights)

    def test_unknown_weights_are_named(self, weights):
        with pytest.raises(ValueError, match=r"has unknown weights encoder\.down\.0\.block\.0\.temb_proj\.weight"):
            load_original({**weights, "encoder.down.0.block.0.temb_proj.weight": torch.ones(1)})

    def test_wrong_shapes_are_named(self, weights):
        weights["post_quant_conv.weight"] = torch.zeros(8, 5, 1, 1)
        with pytest.raises(ValueError, match=r"post_quant_conv\.weight"):
            load_original(weights)

    def test_channels_that_are_no_multiple_of_the_groups(self):
        weights = TamingVQGAN([32], 1, 8, 4, 20).state_dict()
        weights = {
            name: weight.new_zeros([33 if size == 32 else size for size in weight.shape])
            for name, weight in weights.items()
        }
        with pytest.raises(ValueError, match="sizes that diffusers' VQModel cannot have"):
            load_original(weights)

    def test_sizes_beyond_the_limit(self):
        with torch.device("meta"):
            weights = TamingVQGAN([32 * 1024, 32 * 1024], 1, 8, 4, 20).state_dict()
        with pytest.raises(ValueError, match="more than 4294967296, which is the limit"):
            load_original(weights)

    def test_heads_are_no_question_for_a_vqgan(self, weights):
        with pytest.raises(ValueError, match="`num_attention_heads` is 4, but"):
            load_original(weights, num_attention_heads=4)

    @pytest.mark.parametrize(
        ("make", "found"),
        [
            (lambda: AutoencoderKL([32], 1, 4).state_dict(), "decoder.conv_in, decoder.conv_out"),
            (
                lambda: {"embedding.weight": torch.ones(3, 2), "head.bias": torch.ones(2)},
                "embedding.weight, head.bias",
            ),
            (lambda: {"quantize.embedding.weight": torch.ones(3, 2)}, "quantize.embedding"),
            (dict, "no weights"),
        ],
        ids=["kl", "other", "codebook", "empty"],
    )
    def test_unknown_layouts_name_what_is_there_and_what_is_allowed(self, make, found):
        with pytest.raises(ValueError, match=f"ALIT checkpoint.* taming-transformers or LlamaGen.*it has {found}"):
            load_original(make())

    def test_gumbel_codebooks_are_unknown(self, weights):
        weights["quantize.embed.weight"] = weights.pop("quantize.embedding.weight")
        with pytest.raises(ValueError, match=r"with quantize\.embedding\.weight.*quantize\.embed"):
            load_original(weights)
