"""ALITConfig: sizes, derived values, errors, JSON."""

import json

import pytest
import torch
from tiny_config import BASE_TOKENIZERS, VARIANT_NAMES, VARIANTS, tiny_config, tiny_model

from alit_hf import ALITConfig, ALITModel
from alit_hf.model.configuration_alit import _num_weights


@pytest.mark.parametrize(
    ("name", "width", "layers", "heads"),
    [("tiny", 512, 8, 8), ("small", 1024, 8, 8), ("base", 768, 12, 12), ("semilarge", 1024, 16, 16)],
)
@pytest.mark.parametrize(("base", "embed_dim", "output_dim"), [("vqgan", 256, 1024), ("kl", 16, 16)])
def test_paper_configs_have_the_papers_sizes(name, width, layers, heads, base, embed_dim, output_dim):
    config = ALITConfig.paper(name, base=base, quantize=False)
    assert config.hidden_size == width
    assert config.num_encoder_layers == config.num_decoder_layers == layers
    assert config.num_attention_heads == heads
    assert (config.image_size, config.patch_size, config.grid_size, config.num_positions) == (256, 16, (16, 16), 256)
    assert (config.tokens_per_rollout, config.max_rollouts, config.max_tokens) == (32, 8, 256)
    assert (config.codebook_size, config.codebook_dim, config.bits_per_token) == (4096, 12, 12)
    assert (config.base_type, config.base_embed_dim, config.base_output_dim) == (base, embed_dim, output_dim)
    assert config.quantize is False
    assert config.halting_threshold is None


def test_paper_fields_can_be_overridden_and_the_defaults_are_tiny_on_vqgan():
    assert ALITConfig.paper("small", max_rollouts=4).max_tokens == 128
    assert ALITConfig().to_dict() == ALITConfig.paper("tiny").to_dict()


@pytest.mark.parametrize("name", ["tiny", "semilarge"])
@pytest.mark.parametrize("base", ["vqgan", "kl"])
def test_paper_models_can_be_built(name, base):
    with torch.device("meta"):
        model = ALITModel(ALITConfig.paper(name, base=base))
    assert model.embeddings.position_embeddings.shape == (1, 257, model.config.hidden_size)
    assert model.quantizer.codebook.weight.shape == (4096, 12)


@pytest.mark.parametrize(("arguments", "allowed"), [({"name": "huge"}, "semilarge"), ({"base": "vae"}, "vqgan")])
def test_paper_refuses_unknown_names(arguments, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        ALITConfig.paper(**{"name": "tiny", **arguments})
    assert next(iter(arguments.values())) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"image_size": 33}, "multiple of `patch_size`"),
        ({"image_size": [32, 34]}, "multiple of `patch_size`"),
        ({"image_size": 0}, "positive"),
        ({"image_size": [32]}, "height, width"),
        ({"image_size": [32, 32, 32]}, "height, width"),
        ({"image_size": "32"}, "int"),
        ({"image_size": True}, "int"),
        ({"patch_size": 8}, "downsampling factor"),
        ({"patch_size": 0}, "at least 1"),
        ({"num_channels": 4}, "num_channels"),
        ({"hidden_size": 30}, "num_attention_heads"),
        ({"hidden_size": 4}, "embedding dimension"),
        ({"hidden_size": 32.0}, "int"),
        ({"num_encoder_layers": 0}, "at least 1"),
        ({"num_decoder_layers": -1}, "at least 1"),
        ({"num_attention_heads": 0}, "at least 1"),
        ({"mlp_ratio": 0}, "hidden width above 0"),
        ({"mlp_ratio": float("nan")}, "hidden width above 0"),
        ({"hidden_act": "gelou"}, "gelu"),
        ({"layer_norm_eps": 0}, "above 0"),
        ({"initializer_range": -0.1}, "above 0"),
        ({"attention_dropout": 1.0}, "below 1"),
        ({"tokens_per_rollout": 0}, "at least 1"),
        ({"max_rollouts": 0}, "at least 1"),
        ({"max_rollouts": True}, "int"),
        ({"codebook_size": 1}, "between 2 and 65536"),
        ({"codebook_size": 65537}, "between 2 and 65536"),
        ({"codebook_dim": 0}, "at least 1"),
        ({"quantize": "yes"}, "bool"),
        ({"commitment_cost": -1}, "at least 0"),
        ({"commitment_cost": float("nan")}, "at least 0"),
        ({"halting_threshold": 0}, "above 0"),
        ({"halting_threshold": float("nan")}, "above 0"),
        ({"base_tokenizer_config": "VQModel"}, "dict"),
    ],
    ids=str,
)
def test_refused_fields_are_named_with_value_and_what_is_allowed(fields, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        tiny_config(**fields)
    name, value = next(iter(fields.items()))
    assert name in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 10**6}, "more than 4294967296 parameters.*`hidden_size` is 1000000"),
        ({"hidden_size": 10**30}, "`hidden_size` is 10+, it must be at least 1 and at most 4294967296"),
        ({"mlp_ratio": 1e300}, "more than 4294967296 parameters.*`mlp_ratio` is 1e.300"),
        ({"codebook_dim": 10**9}, "more than 4294967296 parameters.*`codebook_dim` is 1000000000"),
        ({"num_encoder_layers": 10**6}, "`num_encoder_layers` is 1000000, it must be at most 1000"),
        ({"num_decoder_layers": 10**6}, "`num_decoder_layers` is 1000000, it must be at most 1000"),
        ({"num_encoder_layers": 900, "hidden_size": 1024}, "more than 4294967296 parameters.*_layers` is 900"),
        ({"image_size": 4 * 10**6}, "`image_size` is 4000000 with 1000000000000 positions, it must have at most"),
        (
            {"image_size": [4, 4 * 10**6]},
            "`image_size` is .* with 1000000 positions, it must have at most 100000000 p",
        ),
        ({"max_rollouts": 10**6}, "`max_rollouts` times `tokens_per_rollout` is 3000000, it must be at most 65535"),
        ({"tokens_per_rollout": 2**14}, "`max_rollouts` times `tokens_per_rollout` is 65536"),
        ({"num_labels": 10**9}, "`num_labels` is 1000000000, it must be at most 1048576"),
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_built(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_out_channels": [8, 8, 16 * 10**5]},
            "more than 4294967296 parameters.*`block_out_channels` .8, 8, 16",
        ),
        ({"layers_per_block": 10**6}, "`layers_per_block` is 1000000, it must be at most 1000"),
        ({"num_vq_embeddings": 10**9}, "more than 4294967296 parameters"),
        ({"num_vq_embeddings": 10**12}, "`num_vq_embeddings` 1000000000000, it must be .* at most 4294967296"),
        ({"latent_channels": 10**8}, "more than 4294967296 parameters"),
    ],
    ids=str,
)
def test_absurd_base_tokenizers_are_refused_before_anything_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(base_tokenizer_config={**BASE_TOKENIZERS["vqgan"], **changes})


@pytest.mark.parametrize("base", ["vqgan", "kl"])
def test_parameters_are_counted_without_building_the_model(base):
    for config in (ALITConfig.paper("tiny", base=base), ALITConfig.paper("semilarge", base=base, quantize=False)):
        with torch.device("meta"):
            num_parameters = sum(weight.numel() for weight in ALITModel(config).parameters())
        # Of the base tokenizer only the larger part is counted, as a limit needs no more.
        assert 0.75 * num_parameters < _num_weights(config) < num_parameters


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"_class_name": "VQGAN"}, "VQModel"),
        ({"_class_name": ["VQModel"]}, "VQModel"),
        ({"block_out_channels": []}, "channels of each level"),
        ({"block_out_channels": 8}, "channels of each level"),
        ({"block_out_channels": [8, 8, 10]}, "norm_num_groups"),
        ({"norm_num_groups": 0}, "at least 1"),
        ({"layers_per_block": "1"}, "at least 1"),
        ({"_decoder_resnets_per_block": 3}, "from 1 to 2"),
        ({"_decoder_resnets_per_block": 0}, "from 1 to 2"),
        ({"latent_channels": 0}, "at least 1"),
        ({"vq_embed_dim": -1}, "at least 1"),
        ({"num_vq_embeddings": 0}, "at least 1"),
        ({"scaling_factor": 0}, "above 0"),
        ({"shift_factor": "0.1"}, "a number or None"),
        ({"shift_factor": float("nan")}, "a number or None"),
        ({"latents_mean": [0.0] * 3}, "one number for each"),
        ({"latents_std": 1.0}, "one number for each"),
        ({"latents_std": [1.0, 1.0, 0.0, 1.0]}, "above 0"),
        ({"_pixel_range": [1, -1]}, "the smaller first"),
        ({"_pixel_range": "[-1, 1]"}, "the smaller first"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 2}, "each of the 3 levels"),
        ({"up_block_types": None}, "each of the 3 levels"),
        ({"in_channels": 1}, "num_channels"),
    ],
    ids=str,
)
def test_refused_base_tokenizers_are_explained(changes, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        tiny_config(base_tokenizer_config={**BASE_TOKENIZERS["vqgan"], **changes})
    assert "base_tokenizer_config" in str(error.value)
    assert next(iter(changes)) in str(error.value)


@pytest.mark.parametrize("changes", [{"down_block_types": ["Nothing"] * 3}, {"depth": 3}, {"act_fn": "none"}], ids=str)
def test_base_tokenizers_that_diffusers_cannot_build_are_value_errors_of_the_model(changes):
    config = tiny_config(base_tokenizer_config={**BASE_TOKENIZERS["vqgan"], **changes})
    with pytest.raises(ValueError, match="base_tokenizer_config"):
        ALITModel(config)


def test_assigning_the_wrong_type_is_a_value_error():
    config = tiny_config()
    with pytest.raises(ValueError, match=r"hidden_size.*int.*'32'"):
        config.hidden_size = "32"
    assert config.hidden_size == 32


@pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)
def test_json_round_trip(tmp_path, base, quantize):
    config = tiny_config(base, quantize, image_size=(32, 48), halting_threshold=0.55, unscale_base_latents=False)
    config.save_pretrained(tmp_path)
    loaded = ALITConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.grid_size, loaded.base_type, loaded.max_tokens) == ((8, 12), base, 12)
    stored = json.loads((tmp_path / "config.json").read_text())
    derived = {"grid_size", "num_positions", "base_type", "base_embed_dim", "max_tokens", "image_height_width"}
    assert not derived & stored.keys()


def test_derived_values_follow_their_fields():
    config = tiny_config()
    config.max_rollouts = 7
    config.image_size = [32, 48]
    config.codebook_size = 65
    assert (config.max_tokens, config.grid_size, config.num_positions, config.bits_per_token) == (21, (8, 12), 96, 7)


def test_configs_share_no_mutable_value():
    given = {**BASE_TOKENIZERS["vqgan"], "block_out_channels": [8, 8, 16]}
    first, second = tiny_config(base_tokenizer_config=given), tiny_config(base_tokenizer_config=given)
    first.base_tokenizer_config["block_out_channels"].append(32)
    first.base_tokenizer_config["act_fn"] = "relu"
    assert second.base_tokenizer_config == given == {**BASE_TOKENIZERS["vqgan"], "block_out_channels": [8, 8, 16]}

    ALITConfig().base_tokenizer_config["block_out_channels"].clear()
    ALITConfig.paper("tiny").base_tokenizer_config["block_out_channels"].clear()
    assert ALITConfig().base_tokenizer_config["block_out_channels"] == [128, 128, 256, 256, 512]
    assert ALITConfig.paper("tiny").base_tokenizer_config["block_out_channels"] == [128, 128, 256, 256, 512]


def test_nothing_is_fixed_at_square_grids_or_eight_rollouts():
    model = tiny_model(image_size=[32, 48], tokens_per_rollout=5, max_rollouts=3, codebook_size=7, codebook_dim=3)
    pixel_values = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        code = model.encode(pixel_values, return_reconstruction=True)
    assert code.token_ids.shape == (2, 15)
    assert code.token_ids.max() < 7
    assert code.grid_size == (8, 12)
    assert code.reconstruction.shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match="32, 48"):
        model.encode(pixel_values.transpose(2, 3))


def test_patch_size_follows_the_bases_depth():
    base = {
        **BASE_TOKENIZERS["kl"],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
    }
    model = tiny_model(image_size=12, patch_size=2, base_tokenizer_config=base)
    assert model(torch.rand(1, 3, 12, 12)).reconstruction.shape == (1, 3, 12, 12)


@pytest.mark.parametrize(
    ("name", "value"), [("num_attention_heads", 5), ("image_size", 33), ("halting_threshold", -1.0)]
)
def test_fields_that_were_set_one_by_one_are_checked_when_a_model_is_built(tmp_path, name, value):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name):
        ALITModel.from_pretrained(tmp_path, **{name: value})


def test_the_folder_of_a_base_tokenizer_is_not_kept(tmp_path):
    base = tiny_config().base_tokenizer_config
    config = tiny_config(base_tokenizer_config={**base, "_name_or_path": str(tmp_path)})
    assert config.base_tokenizer_config == base
