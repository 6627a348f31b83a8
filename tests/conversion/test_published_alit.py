"""Converted checkpoints compute what the published models compute."""

import argparse
import io
import json
import math
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from published_reference import AutoencoderKL, MageVQGAN, PublishedALIT, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alit_hf import ALITConfig, ALITModel
from alit_hf.conversion import load_original


FIXTURE = Path(__file__).parents[1] / "fixtures" / "alit_vqgan_quantized"
RELATIVE_TOLERANCE = 1e-4

with safe_open(FIXTURE / "expected.safetensors", "pt") as expected_file:
    EXPECTED_NAMES = [name for name in expected_file.keys() if name != "pixels_uint8"]  # noqa: SIM118 (no mapping)


def assert_agrees(actual, expected):
    """Integers equal, everything else within the tolerance of the largest magnitude."""
    assert actual.shape == expected.shape
    if not expected.is_floating_point():
        assert torch.equal(actual, expected)
        return
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < RELATIVE_TOLERANCE, f"off by {error:.1e} of the largest magnitude"


def published_tensors(base_latents, base_indices, rollouts, pixels):
    """What a model computed, under the names and with the sub-sampling of the fixture."""
    tensors = {"base_latents": base_latents, "base_indices": base_indices}
    last = len(rollouts) - 1
    for k, (all_tokens, token_ids, decoder_output, reconstruction) in enumerate(rollouts):
        tensors[f"rollout{k}.all_tokens"] = all_tokens if k in (0, last) else all_tokens[:, :4]
        tensors[f"rollout{k}.token_ids"] = token_ids
        tensors[f"rollout{k}.decoder_output"] = decoder_output[:, ::8]
        tensors[f"rollout{k}.l1_per_image"] = (reconstruction - pixels).abs().mean(dim=(1, 2, 3))
        tensors[f"rollout{k}.reconstruction"] = reconstruction[..., ::2, ::2]
    return tensors


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module")
def pixels(expected):
    return expected["pixels_uint8"].float() / 255


@pytest.fixture(scope="module")
def model():
    return load_original(FIXTURE / "original_state_dict.safetensors", num_attention_heads=4)


@pytest.fixture(scope="module")
def rollouts(model, pixels):
    with torch.no_grad():
        return list(model.rollouts(pixels, return_reconstruction=True))


@pytest.fixture(scope="module")
def converted(model, pixels, rollouts):
    with torch.no_grad():
        latents = model.base_tokenizer.encode(pixels)
        indices = model.base_tokenizer.codes(latents)
    steps = [(r.last_hidden_state[:, 1:], r.token_ids, r.decoder_output, r.reconstruction) for r in rollouts]
    return published_tensors(latents, indices, steps, pixels)


class TestParityWithPublishedModel:
    @pytest.mark.parametrize("name", EXPECTED_NAMES)
    def test_tensor(self, name, converted, expected):
        assert_agrees(converted[name], expected[name])

    def test_quantizer_loss(self, rollouts):
        losses = json.loads((FIXTURE / "meta.json").read_text())["stage1"]["per_rollout"]
        for k, rollout in enumerate(rollouts):
            assert rollout.quantizer_loss.mean().item() == pytest.approx(losses[k][f"quantization_loss_{k}"], rel=1e-4)

    def test_encode_gives_the_same_ids(self, model, pixels, expected):
        code = model.encode(pixels, num_tokens=64)
        assert torch.equal(code.token_ids, expected["rollout1.token_ids"])

    def test_reference_has_the_published_arithmetic(self, pixels, expected):
        # The other variants are compared with this reference, so it must itself agree where there are numbers.
        base = MageVQGAN([32, 32, 32, 64, 64], num_res_blocks=1, embed_dim=32, num_codes=64)
        reference = PublishedALIT(base, "vqgan", 32, 64, 64, 2, 2, 4, 8, 32, latent_dim=12, num_codes=128)
        reference.load_state_dict(load_file(FIXTURE / "original_state_dict.safetensors"))
        with torch.no_grad():
            latents = base.encode(pixels)
            steps = [
                (r["all_tokens"], r["token_ids"], r["decoder_output"], base.decode(r["decoder_output"], (16, 16)))
                for r in reference(pixels)
            ]
        computed = published_tensors(latents, base.indices(latents), steps, pixels)
        for name in EXPECTED_NAMES:
            assert_agrees(computed[name], expected[name])


# Small sizes, no two of them the same where they could be mistaken for one another.
CHANNELS = [32, 64, 96]
SIZES = {
    "width": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "rollouts": 3,
    "tokens_per_rollout": 5,
    "latent_dim": 6,
    "patch_size": 4,
    "grid": (8, 8),
}


def vqgan_reference(num_codes=40):
    base = MageVQGAN(CHANNELS, num_res_blocks=2, embed_dim=24, num_codes=50)
    return PublishedALIT(base, "vqgan", base_dim=24, out_dim=50, num_codes=num_codes, **SIZES)


def kl_reference(num_codes=40, base_name="vae", attention_levels=()):
    base = AutoencoderKL(CHANNELS, num_res_blocks=2, embed_dim=4, attention_levels=attention_levels)
    return PublishedALIT(base, base_name, base_dim=4, out_dim=4, num_codes=num_codes, **SIZES)


def randomised(reference):
    return randomise(reference, torch.Generator().manual_seed(0)).eval()


VARIANTS = {
    "vqgan-quantised": vqgan_reference,
    "vqgan-continuous": lambda: vqgan_reference(num_codes=None),
    "kl-quantised": kl_reference,
    "kl-continuous": lambda: kl_reference(num_codes=None),
    "kl-other-prefix": lambda: kl_reference(base_name="first_stage_model"),
    "kl-attention-in-decoder": lambda: kl_reference(attention_levels=(2,)),
}


class TestOtherVariants:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_end_to_end(self, variant):
        reference = randomised(VARIANTS[variant]())
        base = reference.base
        model = load_original(reference.state_dict(), num_attention_heads=2)
        pixels = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            latents = model.base_tokenizer.encode(pixels)
            assert_agrees(latents, base.encode(pixels))
            if model.config.base_type == "vqgan":
                assert_agrees(model.base_tokenizer.codes(latents), base.indices(latents))
            steps = list(model.rollouts(pixels, return_reconstruction=True))
            expected_steps = reference(pixels)
        assert len(steps) == len(expected_steps) == 3
        for step, expected in zip(steps, expected_steps, strict=True):
            assert_agrees(step.last_hidden_state[:, 1:], expected["all_tokens"])
            assert_agrees(step.latents, expected["latents"])
            assert_agrees(step.decoder_output, expected["decoder_output"])
            with torch.no_grad():
                assert_agrees(step.reconstruction, base.decode(expected["decoder_output"], (8, 8)))
            if expected["token_ids"] is None:
                assert step.token_ids is None
            else:
                assert_agrees(step.token_ids, expected["token_ids"])

    def test_config_shows_the_sizes(self):
        config = load_original(randomised(vqgan_reference()).state_dict(), num_attention_heads=2).config
        assert (config.image_size, config.patch_size, config.num_channels) == (32, 4, 3)
        assert (config.hidden_size, config.num_encoder_layers, config.num_decoder_layers) == (64, 2, 3)
        assert (config.num_attention_heads, config.mlp_ratio) == (2, 4)
        assert (config.tokens_per_rollout, config.max_rollouts) == (5, 3)
        assert (config.codebook_size, config.codebook_dim, config.quantize) == (40, 6, True)

    def test_embeddings_that_no_sum_tells_apart(self):
        # Only halting reads the encoder's mask token, and latent tokens are only ever added to their positions.
        weights = randomised(vqgan_reference()).state_dict()
        model = load_original(weights, num_attention_heads=2)
        assert torch.equal(model.embeddings.mask_token, weights["encoder_mask_token"])
        assert torch.equal(model.latent_tokens.tokens, weights["latent_tokens"])
        assert torch.equal(model.latent_tokens.position_embeddings, weights["latent_token_positional_embedding"])

    def test_kl_decodes_without_dividing(self):
        config = load_original(randomised(kl_reference()).state_dict(), num_attention_heads=2).config
        assert config.base_tokenizer_config["scaling_factor"] == 0.2325
        assert config.unscale_base_latents is False

    def test_evaluation_mode_and_float32_from_half_precision(self):
        weights = {key: value.bfloat16() for key, value in randomised(kl_reference()).state_dict().items()}
        model = load_original(weights, num_attention_heads=2)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("reference", [vqgan_reference, kl_reference])
    def test_survives_saving(self, reference, tmp_path):
        model = load_original(randomised(reference()).state_dict(), num_attention_heads=2)
        model.save_pretrained(tmp_path)
        reloaded, report = ALITModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert reloaded.state_dict().keys() == model.state_dict().keys()
        pixels = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(reloaded(pixels).reconstruction, model(pixels).reconstruction)

    def test_a_vqgan_decoder_has_the_published_resnets_and_no_more(self):
        published = vqgan_reference()
        model = load_original(randomised(published).state_dict(), num_attention_heads=2)
        levels = published.base.decoder.up[::-1]
        blocks = model.base_tokenizer.model.decoder.up_blocks
        assert [len(block.resnets) for block in blocks] == [len(level.block) for level in levels]

    def test_every_converted_vqgan_weight_can_learn(self):
        # A layer that computes nothing would be stuck there.
        model = load_original(randomised(vqgan_reference()).state_dict(), num_attention_heads=2)
        decoder = model.base_tokenizer.model.decoder
        decoder(torch.rand(1, 24, 8, 8)).square().mean().backward()
        for level in decoder.up_blocks:
            assert level.resnets[-1].conv2.weight.grad.abs().max() > 0


class TestPublishedSizes:
    """On the meta device, where full-size models cost nothing: names and shapes only."""

    @pytest.mark.parametrize("name", ["tiny", "small", "base", "semilarge"])
    @pytest.mark.parametrize("base_type", ["vqgan", "kl"])
    def test_config_is_the_papers(self, name, base_type):
        expected = ALITConfig.paper(name, base=base_type, unscale_base_latents=base_type == "vqgan")
        channels = [128, 128, 256, 256, 512]
        layers = (expected.num_encoder_layers, expected.num_decoder_layers)
        sizes = (expected.hidden_size, *layers, expected.num_attention_heads, 8, 32)
        with torch.device("meta"):
            if base_type == "vqgan":
                base, base_dim, out_dim = MageVQGAN(channels, 2, 256, 1024), 256, 1024
            else:
                base, base_dim, out_dim = AutoencoderKL(channels, 2, 16), 16, 16
            reference = PublishedALIT(base, "base", base_dim, out_dim, *sizes, latent_dim=12, num_codes=4096)
            config = load_original(reference.state_dict()).config
        found, wanted = config.to_dict(), expected.to_dict()
        base_config = found.pop("base_tokenizer_config")
        assert base_config.items() >= wanted.pop("base_tokenizer_config").items()
        assert found == wanted

    def test_other_sizes_need_the_heads(self):
        with pytest.raises(ValueError, match=r"`num_attention_heads` must be given.*width 64"):
            load_original(vqgan_reference().state_dict())

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ValueError, match="num_attention_heads"):
            load_original(vqgan_reference().state_dict(), num_attention_heads=3)


def constant(weights, value):
    return {key: torch.full_like(tensor, value) for key, tensor in weights.items()}


class TestCheckpointFiles:
    @pytest.fixture
    def weights(self):
        return randomised(kl_reference(num_codes=None)).state_dict()

    @staticmethod
    def loaded_values(checkpoint):
        model = load_original(checkpoint, num_attention_heads=2)
        return {
            "encoder": model.encoder.layernorm_pre.weight.unique().item(),
            "base": model.base_tokenizer.model.quant_conv.weight.unique().item(),
        }

    def test_average_weights_are_preferred(self, weights):
        checkpoint = {"model": constant(weights, 1.0), "ema": constant(weights, 2.0), "epoch": 3}
        assert self.loaded_values(checkpoint) == {"encoder": 2.0, "base": 2.0}

    def test_prefixes_of_distributed_training_are_stripped(self, weights):
        average = {f"module.{key}": value for key, value in constant(weights, 2.0).items()}
        assert self.loaded_values({"model": constant(weights, 1.0), "ema": average}) == {"encoder": 2.0, "base": 2.0}

    def test_partial_average_is_completed(self, weights):
        model = {f"module.{key}": value for key, value in constant(weights, 1.0).items()}
        average = {key: value for key, value in constant(weights, 2.0).items() if not key.startswith("base_")}
        assert self.loaded_values({"model": model, "ema": average}) == {"encoder": 2.0, "base": 1.0}

    def test_model_weights_without_average(self, weights):
        checkpoint = {"model": constant(weights, 1.0), "ema": None}
        assert self.loaded_values(checkpoint) == {"encoder": 1.0, "base": 1.0}

    def test_average_that_is_no_state_dict(self, weights):
        with pytest.raises(ValueError, match="`ema` of the checkpoint is a list"):
            load_original({"model": weights, "ema": list(weights.values())}, num_attention_heads=2)

    @pytest.mark.parametrize(
        "key",
        [
            "gan_losses.3.discriminator.main.0.weight",
            "gan_losses.3.discriminator.main.3.num_batches_tracked",
            "perceptual_loss.net.slice1.0.weight",
            "lpips.lin0.model.1.weight",
            "discriminators.0.main.2.bias",
            "base_tokenizer.vae.loss.discriminator.main.0.weight",
        ],
    )
    def test_losses_are_dropped(self, weights, key):
        load_original({**weights, key: torch.ones(1)}, num_attention_heads=2)

    def test_scalars_beside_a_discriminator_are_dropped(self, weights):
        extra = {"criteria.0.logvar": torch.zeros(()), "criteria.0.discriminator.main.0.weight": torch.ones(1)}
        load_original({**weights, **extra}, num_attention_heads=2)

    @pytest.mark.parametrize(
        "key", ["encoder.transformer.0.attn.relative_bias", "base_tokenizer.vae.decoder.norm_in.weight", "head.weight"]
    )
    def test_unknown_weights_are_named(self, weights, key):
        with pytest.raises(ValueError, match=f"has unknown weights {key}"):
            load_original({**weights, key: torch.ones(1)}, num_attention_heads=2)

    @pytest.mark.parametrize(
        "key",
        [
            "timestep_embedding",
            "decoder.ffn.2.bias",
            "encoder.transformer.0.mlp.c_fc.weight",
            "base_tokenizer.vae.decoder.up.0.block.2.conv1.weight",
            "base_tokenizer.vae.post_quant_conv.bias",
        ],
    )
    def test_missing_weights_are_named(self, weights, key):
        del weights[key]
        with pytest.raises(ValueError, match=f"lacks {key}"):
            load_original(weights, num_attention_heads=2)

    def test_damaged_index_asks_for_nothing(self, weights):
        weights["encoder.transformer.999999999999.ln_1.weight"] = torch.ones(64)
        with pytest.raises(ValueError, match=r"has unknown weights encoder\.transformer\.999999999999"):
            load_original(weights, num_attention_heads=2)

    def test_wrong_shape_is_named(self, weights):
        weights["decoder.ffn.0.weight"] = torch.zeros(7, 64)
        with pytest.raises(ValueError, match=r"decoder\.head\.fc1\.weight"):
            load_original(weights, num_attention_heads=2)

    @pytest.mark.parametrize(
        "damage", [lambda weight: weight * float("nan"), lambda weight: weight.to(torch.complex64)]
    )
    def test_weights_that_cannot_be_right_are_named(self, weights, damage):
        weights["encoder_ln_pre.weight"] = damage(weights["encoder_ln_pre.weight"].float())
        with pytest.raises(ValueError, match=r"encoder_ln_pre.weight.*finite"):
            load_original(weights, num_attention_heads=2)

    def test_keys_that_are_no_names(self, weights):
        with pytest.raises(ValueError, match="the key 1"):
            load_original({**weights, 1: torch.ones(1)})

    def test_without_base_tokenizer(self, weights):
        weights = {key: value for key, value in weights.items() if not key.startswith("base_tokenizer.")}
        with pytest.raises(ValueError, match="has 0 base tokenizers"):
            load_original(weights, num_attention_heads=2)

    @pytest.mark.parametrize("ending", ["pth", "pt", "ckpt"])
    def test_pickled_file_with_training_arguments(self, weights, tmp_path, ending):
        path = tmp_path / f"checkpoint.{ending}"
        arguments = argparse.Namespace(batch_size=32, output_dir="./out", betas=(0.9, 0.95))
        torch.save({"model": weights, "optimizer": {"state": {0: {"step": 1}}}, "args": arguments}, path)
        model = load_original(str(path), num_attention_heads=2)
        assert torch.equal(model.latent_tokens.tokens, weights["latent_tokens"])

    def test_safetensors_file(self, weights, tmp_path):
        save_file(weights, tmp_path / "weights.safetensors")
        model = load_original(tmp_path / "weights.safetensors", num_attention_heads=2)
        assert torch.equal(model.latent_tokens.tokens, weights["latent_tokens"])

    def test_nothing_in_a_file_is_executed(self, weights, tmp_path):
        class Payload:
            def __reduce__(self):
                return Path.touch, (tmp_path / "executed",)

        torch.save({"model": weights, "args": Payload()}, tmp_path / "checkpoint.pth")
        load_original(tmp_path / "checkpoint.pth", num_attention_heads=2)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("name", ["checkpoint.pth", "weights.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"], ids=["empty", "text", "zip"])
    def test_foreign_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="path_or_state_dict"):
            load_original(tmp_path / name)

    def test_truncated_file(self, weights, tmp_path):
        torch.save({"model": weights}, tmp_path / "whole.pth")
        whole = (tmp_path / "whole.pth").read_bytes()
        (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="cannot be read as weights"):
            load_original(tmp_path / "half.pth", num_attention_heads=2)

    def test_file_without_state_dict(self, tmp_path):
        torch.save([torch.ones(1)], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="holds a list, not a state dict"):
            load_original(tmp_path / "list.pth")

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_original(tmp_path / "none.pth")

    def test_neither_path_nor_state_dict(self):
        with pytest.raises(ValueError, match="`path_or_state_dict` is a int"):
            load_original(3)


# Of 82 GB in float32.
MANY = 20_500_000_000


class TestHostileFiles:
    """Files that declare 82 GB in few bytes: refused at once, and without memory for it."""

    @pytest.fixture
    def weights(self):
        return randomised(kl_reference(num_codes=None)).state_dict()

    @staticmethod
    def refusal(path: Path) -> str:
        resource = pytest.importorskip("resource")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match=r"\w") as error:
            load_original(path, num_attention_heads=2)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000
        return str(error.value)

    @pytest.mark.parametrize("key", ["encoder_ln_pre.weight", "encoder_positional_embedding", "unknown", "gan.weight"])
    @pytest.mark.parametrize("is_whole", [True, False], ids=["sparse on the disk", "short"])
    def test_header_of_safetensors(self, weights, tmp_path, key, is_whole):
        header, end = {}, 0
        for name, shape in {**{n: w.shape for n, w in weights.items()}, key: (MANY // 64, 64)}.items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(tmp_path / "hostile.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end if is_whole else 10**6)
        message = self.refusal(tmp_path / "hostile.safetensors")
        # A small machine may not even map so large a file.
        reasons = ["cannot be read as weights", "do not fit together", "must be a square number", "unknown weights"]
        assert any(reason in message for reason in reasons)

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.zeros(1).expand(MANY),
            torch.empty(MANY, device="meta"),
            torch.zeros(1).expand(MANY // 64, 64),
        ],
        ids=["repeated", "without data", "repeated rows"],
    )
    def test_tensors_larger_than_their_data(self, weights, tmp_path, tensor):
        torch.save({"model": {**weights, "encoder_ln_pre.weight": tensor}}, tmp_path / "hostile.pth")
        assert "do not fit together" in self.refusal(tmp_path / "hostile.pth")

    def test_sparse_tensors(self, weights, tmp_path):
        indices, values = torch.zeros(1, 1, dtype=torch.long), torch.ones(1)
        weights["encoder_ln_pre.weight"] = torch.sparse_coo_tensor(indices, values, (MANY,), check_invariants=True)
        torch.save({"model": weights}, tmp_path / "hostile.pth")
        message = self.refusal(tmp_path / "hostile.pth")
        assert "`model` holds a sparse or quantised tensor under 'encoder_ln_pre.weight'" in message

    @pytest.mark.parametrize("kind", ["zip", "compressed", "legacy"])
    def test_storages_larger_than_their_data(self, weights, tmp_path, kind):
        weights["encoder_ln_pre.weight"] = torch.zeros(12345)
        file = io.BytesIO()
        torch.save({"model": weights}, file, _use_new_zipfile_serialization=kind != "legacy")
        # As pickle writes the two numbers.
        declared = (b"M" + (12345).to_bytes(2, "little"), b"\x8a\x05" + MANY.to_bytes(5, "little"))
        if kind == "legacy":
            (tmp_path / "hostile.pth").write_bytes(file.getvalue().replace(*declared))
        else:
            method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
            with zipfile.ZipFile(file) as honest, zipfile.ZipFile(tmp_path / "hostile.pth", "w", method) as hostile:
                for name in honest.namelist():
                    content = honest.read(name)
                    hostile.writestr(name, content.replace(*declared) if name.endswith("data.pkl") else content)
        assert "cannot be read as weights" in self.refusal(tmp_path / "hostile.pth")

    def test_weights_that_agree_with_each_other_on_absurd_sizes(self):
        with torch.device("meta"):
            weights = PublishedALIT(
                AutoencoderKL(CHANNELS, 2, 4),
                "vae",
                base_dim=4,
                out_dim=4,
                num_codes=None,
                **{**SIZES, "width": 64000},
            ).state_dict()
        with pytest.raises(ValueError, match="more than 4294967296 parameters, which is the limit"):
            load_original(weights, num_attention_heads=2)

    def test_files_of_older_versions_of_torch(self, weights, tmp_path):
        torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        model = load_original(tmp_path / "old.pth", num_attention_heads=2)
        assert torch.equal(model.latent_tokens.tokens, weights["latent_tokens"])
