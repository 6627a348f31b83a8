"""`alit convert`: the folder that `--model` takes."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from published_reference import LlamaGenVQ, TamingVQGAN

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.conversion import load_original


CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "alit_vqgan_quantized" / "original_state_dict.safetensors"


def test_converted_folder_is_the_model(alit, tmp_path):
    folder = tmp_path / "new" / "model"
    result = alit("convert", CHECKPOINT, "-o", folder, "--num-attention-heads", 4)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{folder}: ")
    converted, expected = ALITModel.from_pretrained(folder), load_original(CHECKPOINT, num_attention_heads=4)
    assert converted.config.num_attention_heads == 4
    for name, weight in expected.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight)
    processor = ALITImageProcessor.from_pretrained(folder)
    assert dict(processor.crop_size) == {"height": 256, "width": 256}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert alit("info", folder).code == 0


def test_folder_with_something_in_it_is_left_alone(alit, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = alit("convert", CHECKPOINT, "-o", tmp_path, "--num-attention-heads", 4)
    assert (result.code, result.errors) == (2, [f"alit: error: the output {tmp_path} is not empty"])
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_empty_folder_is_filled(alit, tmp_path):
    (tmp_path / "model").mkdir()
    assert alit("convert", CHECKPOINT, "-o", tmp_path / "model", "--num-attention-heads", 4).code == 0
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.pth", "-o", "out"], 2, "missing.pth does not exist"),
        ([".", "-o", "out"], 2, ". is not a file"),
        (["junk.pth", "-o", "junk.pth"], 2, "junk.pth is not a folder"),
        (["junk.pth", "-o", "out"], 1, "junk.pth"),
        ([CHECKPOINT, "-o", "out"], 1, "`num_attention_heads` must be given"),
        ([CHECKPOINT, "-o", "out", "--num-attention-heads", "7"], 1, "num_attention_heads"),
        ([CHECKPOINT, "-o", "out", "--num-attention-heads", "0"], 2, "it must be a whole number from 1"),
    ],
)
def test_errors_leave_nothing_behind(alit, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    result = alit("convert", *arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (code, "", 1)
    assert message in result.err
    assert os.listdir() == ["junk.pth"]


@pytest.mark.parametrize("kind", [TamingVQGAN, LlamaGenVQ])
def test_a_vqgan_becomes_a_vqmodel(alit, tmp_path, kind):
    weights = kind([32, 32], 1, 8, 4, 20).state_dict()
    torch.save({"state_dict": weights, "hyper_parameters": Namespace(lr=1e-4)}, tmp_path / "last.ckpt")
    result = alit("convert", tmp_path / "last.ckpt", "-o", tmp_path / "vqgan")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{tmp_path / 'vqgan'}: ")
    assert result.out.endswith(" parameters, a VQModel of 20 codes of dimension 4\n")
    model = VQModel.from_pretrained(tmp_path / "vqgan")
    assert torch.equal(model.quant_conv.weight, weights["quant_conv.weight"])
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "vqgan"]
    assert sorted(os.listdir(tmp_path / "vqgan")) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_an_unknown_layout_is_named(alit, tmp_path):
    torch.save({"embedding.weight": torch.ones(2)}, tmp_path / "other.pth")
    result = alit("convert", tmp_path / "other.pth", "-o", tmp_path / "out")
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert "taming-transformers or LlamaGen" in result.err
    assert "it has embedding.weight" in result.err
    assert os.listdir(tmp_path) == ["other.pth"]
