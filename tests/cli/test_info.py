"""`alit info`: files and models."""

import pytest
import torch
from tiny_model import save_tiny_model

from alit_hf.codes.token_file import TokenFile, model_fingerprint


def values(out: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in out.splitlines())


def read(result) -> dict[str, str]:
    assert (result.code, result.err) == (0, "")
    return {name: value.strip() for name, value in values(result.out).items()}


def test_file(alit, tmp_path):
    tokens = TokenFile(list(range(32)), (640, 427), (16, 12), 4096, bytes(range(8)))
    tokens.save(tmp_path / "x.alit")
    assert read(alit("info", tmp_path / "x.alit")) == {
        "file": f"{tmp_path / 'x.alit'}, 81 bytes",
        "original": "640 x 427 pixels",
        "grid": "16 x 12 positions",
        "tokens": "32, 48 bytes at 12 bits",
        "codebook": "4096 codes",
        "model fingerprint": "0001020304050607",
        "token ids": " ".join(map(str, range(32))),
    }


def test_json_of_a_file(alit, tmp_path):
    TokenFile(list(range(32)), (640, 427), (16, 12), 4096, bytes(range(8))).save(tmp_path / "x.alit")
    assert alit("info", tmp_path / "x.alit", "--json").json == {
        "file": str(tmp_path / "x.alit"),
        "file_bytes": 81,
        "original_size": [640, 427],
        "grid_size": [16, 12],
        "num_tokens": 32,
        "bytes": 48,
        "codebook_size": 4096,
        "fingerprint": "0001020304050607",
        "token_ids": list(range(32)),
    }


def test_json_of_a_model(alit, tiny_model, loaded):
    model, _ = loaded
    assert alit("info", tiny_model, "--json").json == {
        "model": tiny_model,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_base_parameters": sum(p.numel() for p in model.base_tokenizer.parameters()),
        "image_size": [32, 32],
        "grid_size": [8, 8],
        "patch_size": 4,
        "base_type": "vqgan",
        "base_embed_dim": 8,
        "base_codebook_size": 32,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "max_rollouts": 3,
        "tokens_per_rollout": 4,
        "quantize": True,
        "codebook_size": 64,
        "codebook_dim": 4,
        "lengths": [{"num_tokens": 4, "bytes": 3}, {"num_tokens": 8, "bytes": 6}, {"num_tokens": 12, "bytes": 9}],
        "fingerprint": model_fingerprint(model).hex(),
    }


def test_model(alit, tiny_model, loaded):
    model, _ = loaded
    info = read(alit("info", tiny_model))
    assert info["parameters"].startswith(f"{sum(p.numel() for p in model.parameters()):,}, ")
    assert info["pictures"] == "32 x 32 pixels, 8 x 8 positions of 4 pixels"
    assert info["base tokenizer"] == "VQGAN, 32 codes of dimension 8"
    assert info["rollouts"] == "3, 4 latent tokens each"
    assert info["codebook"] == "64 codes of dimension 4"
    assert [info[f"{length} tokens"] for length in (4, 8, 12)] == ["3 bytes", "6 bytes", "9 bytes"]
    assert info["fingerprint"] == model_fingerprint(model).hex()


def test_sizes_that_are_not_square_and_latents_without_ids(alit, tmp_path):
    torch.manual_seed(0)
    model = save_tiny_model(tmp_path / "model", image_size=[16, 32], quantize=False)
    results = alit("info", model, "--json").json
    assert (results["image_size"], results["grid_size"]) == ([16, 32], [4, 8])
    assert (results["codebook_size"], results["fingerprint"], results["lengths"][0]["bytes"]) == (None, None, None)
    info = read(alit("info", model))
    assert info["pictures"] == "32 x 16 pixels, 4 x 8 positions of 4 pixels"
    assert info["codebook"] == "none, continuous latent tokens of dimension 4"
    assert "4 tokens" not in info
    assert "fingerprint" not in info


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("missing.alit", 2, "missing.alit does not exist"),
        ("nobody/nothing", 2, "the model nobody/nothing is no folder, and from the Hub"),
        ("altered.alit", 1, "altered.alit: the .alit file has been altered"),
        ("foreign.png", 1, "foreign.png: this is no .alit file"),
    ],
)
def test_errors(alit, tmp_path, monkeypatch, name, code, message):
    monkeypatch.chdir(tmp_path)
    data = TokenFile([1, 2], (1, 1), (1, 1), 64, bytes(8)).to_bytes()
    (tmp_path / "altered.alit").write_bytes(data[:10] + b"\xff" + data[11:])
    (tmp_path / "foreign.png").write_bytes(b"foreign")
    result = alit("info", name)
    assert (result.code, result.out, len(result.err.splitlines())) == (code, "", 1)
    assert message in result.err
