"""The first stage starts on base tokenizers of others: Stable Diffusion's VAEs, pipelines, converted VQGANs."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from hub_server import logged_in_hub
from huggingface_hub import HfApi
from published_reference import LlamaGenVQ, randomise
from safetensors.torch import save_file

from alit_hf import ALITConfig, ALITModel
from alit_hf.codes.token_file import model_fingerprint
from alit_hf.conversion import load_original
from training.engine.loop import CannotStartError, train
from training.stages.registry import STAGES


# Stable Diffusion's layout: three halvings, attention in the middle.
SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
LATER_VAES = {
    "sd3": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    | {"use_quant_conv": False, "use_post_quant_conv": False},
    "sdxl": {"scaling_factor": 0.13025, "force_upcast": True},
    "playground": {"latents_mean": [-1.6, 1.5, 0.5, 0.1], "latents_std": [8.4, 5.9, 5.4, 5.2], "scaling_factor": 0.5},
}


@pytest.fixture
def save_vae(tmp_path):
    def save(folder: str = "vae", /, **fields) -> AutoencoderKL:
        torch.manual_seed(0)
        vae = AutoencoderKL(**SD_VAE | fields).eval()
        vae.save_pretrained(tmp_path / folder)
        return vae

    return save


def pipeline(folder: Path, **components: list) -> str:
    folder.mkdir(exist_ok=True)
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | components))
    return str(folder)


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fields", [{}, *LATER_VAES.values()], ids=["sd", *LATER_VAES])
@torch.no_grad()
def test_a_vae_computes_what_pipelines_of_diffusers_do_with_it(config, save_vae, pixels, tmp_path, fields):
    vae = save_vae(**fields)
    stage = STAGES["distill"].build(config("distill", init_from=str(tmp_path / "vae")))
    assert stage.model.config.patch_size == 8
    latents = vae.encode(2 * pixels - 1).latent_dist.mode()
    mean = torch.tensor(fields.get("latents_mean", [fields.get("shift_factor", 0.0)]))[:, None, None]
    std = torch.tensor(fields.get("latents_std", [1.0]))[:, None, None]
    expected = (latents - mean) * fields.get("scaling_factor", 0.18215) / std
    base = stage.model.base_tokenizer
    torch.testing.assert_close(base.encode(pixels), expected)
    torch.testing.assert_close(base.decode(expected), vae.decode(latents).sample / 2 + 0.5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, LATER_VAES["sd3"]], ids=["sd", "sd3"])
def test_a_step_on_a_vae_gives_a_model(config, save_vae, pixels, tmp_path, fields):
    save_vae("pipeline/vae", **fields)
    folder = pipeline(tmp_path / "pipeline", vae=["diffusers", "AutoencoderKL"], unet=["diffusers", "UNet2DModel"])
    train(config("distill", init_from=folder, optimization__max_steps=1))
    model = ALITModel.from_pretrained(tmp_path / "distill" / "model").eval()
    with torch.no_grad():
        code = model.encode(pixels, num_tokens=8)
        assert code.token_ids.shape == (2, 8)
        assert model.decode(code).pixel_values.shape == (2, 3, 32, 32)
    base = model.base_tokenizer.model
    vae = AutoencoderKL.from_pretrained(tmp_path / "pipeline" / "vae")
    assert all(torch.equal(weight, base.state_dict()[name]) for name, weight in vae.state_dict().items())


def test_names_of_weights_of_older_versions_of_diffusers(config, save_vae, tmp_path):
    """As in Stable Diffusion's repositories, which also have no `scaling_factor`."""
    vae = save_vae()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = vae.state_dict()
    for ours, theirs in former.items():
        weights = {name.replace(f".{ours}.", f".{theirs}."): weight for name, weight in weights.items()}
    assert sum("proj_attn" in name for name in weights) == 4
    save_file(weights, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "vae" / "config.json"
    fields = json.loads(file.read_text())
    del fields["scaling_factor"], fields["shift_factor"], fields["use_quant_conv"]
    file.write_text(json.dumps(fields))
    made = STAGES["distill"].build(config("distill", init_from=str(tmp_path / "vae")))
    loaded = made.model.base_tokenizer.model
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in vae.state_dict().items())
    assert loaded.config.scaling_factor == 0.18215


class TestPipelines:
    def test_the_autoencoder_is_found_by_its_class(self, config, tmp_path):
        fields = {key: value for key, value in SD_VAE.items() if key != "scaling_factor"}
        VQModel(**fields).save_pretrained(tmp_path / "pipeline" / "vqvae")
        folder = pipeline(tmp_path / "pipeline", vqvae=["diffusers", "VQModel"], unet=["diffusers", "UNet2DModel"])
        model = STAGES["distill"].build(config("distill", init_from=folder)).model
        assert model.config.base_type == "vqgan"
        assert model.config.base_tokenizer_config["_pixel_range"] == [-1, 1]

    @pytest.mark.parametrize("components", [{"vae": ["diffusers", "AutoencoderTiny"]}, {}], ids=["another", "none"])
    def test_without_an_autoencoder_that_can_be_used(self, config, tmp_path, components):
        folder = pipeline(tmp_path / "pipeline", unet=["diffusers", "UNet2DModel"], **components)
        with pytest.raises(
            ValueError, match=r"`init_from` is '.*VQModel or AutoencoderKL.*: the pipeline has"
        ) as error:
            config("distill", init_from=folder)
        assert all(class_name in str(error.value) for _, class_name in components.values())

    def test_on_the_hub(self, config, save_vae, tmp_path, monkeypatch):
        vae = save_vae("pipeline/vae")
        pipeline(tmp_path / "pipeline", vae=["diffusers", "AutoencoderKL"])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        with logged_in_hub(monkeypatch):
            HfApi().create_repo("tester/pipeline")
            HfApi().upload_folder(repo_id="tester/pipeline", folder_path=tmp_path / "pipeline")
            made = STAGES["distill"].build(config("distill", init_from="tester/pipeline"))
        weights = made.model.base_tokenizer.model.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in vae.state_dict().items())

    def test_a_component_that_is_not_there(self, config, tmp_path):
        folder = pipeline(tmp_path / "pipeline", vae=["diffusers", "AutoencoderKL"])
        with pytest.raises(ValueError, match=r"`init_from` is '.*pipeline'"):
            config("distill", init_from=folder)


class TestRefusals:
    def test_other_autoencoders(self, config, tmp_path):
        AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
            tmp_path
        )
        with pytest.raises(ValueError, match=r"one of \['AutoencoderKL', 'VQModel'\], it is AutoencoderTiny"):
            config("distill", init_from=str(tmp_path))

    def test_single_files(self, config, tmp_path):
        (tmp_path / "vae.safetensors").write_bytes(b"\x80\x00\xff")
        with pytest.raises(ValueError, match=r"must be the folder or Hub id of a base tokenizer"):
            STAGES["distill"].build(config("distill", init_from=str(tmp_path / "vae.safetensors")))

    def test_a_folder_without_weights(self, config, save_vae, tmp_path):
        save_vae()
        (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(CannotStartError, match=r"`init_from` is .*its weights cannot be read"):
            train(config("distill", init_from=str(tmp_path / "vae")))
        assert not (tmp_path / "distill" / "config.yaml").exists()

    def test_an_image_size_that_does_not_fit(self, config, save_vae, tmp_path):
        save_vae()
        with pytest.raises(ValueError, match=r"`image_size` is 36, each side must be a positive multiple"):
            config("distill", init_from=str(tmp_path / "vae"), data__image_size=36)


class TestPixelRange:
    def test_the_base_can_say_it(self, config, save_vae, tmp_path):
        save_vae()
        file = tmp_path / "vae" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_pixel_range": [0, 1]}))
        made = STAGES["distill"].build(config("distill", init_from=str(tmp_path / "vae")))
        assert "_pixel_range" not in made.model.config.base_tokenizer_config

    def test_bases_of_the_stage_base_keep_theirs(self, config, vq_base):
        made = STAGES["distill"].build(config("distill", init_from=vq_base))
        assert "_pixel_range" not in made.model.config.base_tokenizer_config

    @torch.no_grad()
    def test_a_converted_vqgan(self, config, pixels, tmp_path):
        original = randomise(LlamaGenVQ([32, 32, 64], 1, 16, 8, 64), torch.Generator().manual_seed(0)).eval()
        load_original(original.state_dict()).save_pretrained(tmp_path / "vqgan")
        made = config("distill", init_from=str(tmp_path / "vqgan"))
        base = STAGES["distill"].build(made).model.base_tokenizer.eval()
        latents = original.encode(2 * pixels - 1)
        codes, ids = original.codes(latents)
        torch.testing.assert_close(base.encode(pixels), latents, atol=1e-4, rtol=1e-4)
        assert torch.equal(base.codes(latents).view_as(ids), ids)
        expected = original.decode(codes) / 2 + 0.5
        torch.testing.assert_close(base.decode(codes), expected, atol=1e-4, rtol=1e-4)

    def test_the_stage_base_goes_on_in_it(self, config, pixels, tmp_path):
        original = randomise(LlamaGenVQ([32, 32, 64], 1, 16, 8, 64), torch.Generator().manual_seed(0)).eval()
        load_original(original.state_dict()).save_pretrained(tmp_path / "vqgan")
        stage = STAGES["base"].build(config("base", init_from=str(tmp_path / "vqgan"), model={}))
        stage.step = 10
        with torch.no_grad():
            codes, _ = original.codes(original.encode(2 * pixels - 1))
            expected = original.decode(codes) / 2 + 0.5
            torch.testing.assert_close(stage.eval().reconstruct(pixels), expected, atol=1e-4, rtol=1e-4)
            _, logs = stage.training_loss(pixels)
        assert float(logs["l1"]) == pytest.approx(float((expected - pixels).abs().mean()), rel=1e-3)
        stage.save_pretrained(str(tmp_path / "trained"), stage.model.state_dict())
        assert VQModel.from_pretrained(tmp_path / "trained").config._pixel_range == [-1, 1]

    def test_it_decides_what_ids_mean(self):
        base = {"_class_name": "AutoencoderKL", **SD_VAE}
        sizes = {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
        }
        prints = set()
        for pixel_range in ([0, 1], [-1, 1]):
            torch.manual_seed(0)
            config = ALITConfig(**sizes, base_tokenizer_config={**base, "_pixel_range": pixel_range})
            prints.add(model_fingerprint(ALITModel(config)))
        assert len(prints) == 2


@torch.no_grad()
def test_a_vae_that_overflows_in_float16_computes_in_float32(config, save_vae, pixels, tmp_path):
    vae = save_vae(force_upcast=True)
    # Activations of 1e5 in the middle, outputs of the usual size.
    vae.decoder.conv_in.weight.mul_(1e5)
    vae.save_pretrained(tmp_path / "vae")
    STAGES["distill"].build(config("distill", init_from=str(tmp_path / "vae"))).model.save_pretrained(
        tmp_path / "alit"
    )
    model = ALITModel.from_pretrained(tmp_path / "alit", dtype=torch.float16).eval()
    assert {weight.dtype for weight in model.base_tokenizer.parameters()} == {torch.float32}
    assert model.encoder.layers[0].mlp.fc1.weight.dtype == torch.float16
    code = model.encode(pixels.half(), num_tokens=4)
    decoded = model.decode(code).pixel_values
    assert decoded.dtype == torch.float16
    assert decoded.isfinite().all()
