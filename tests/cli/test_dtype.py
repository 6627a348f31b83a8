"""`--dtype auto`: bfloat16 where the device computes it, and what was taken is said and stored."""

import json

import pytest
import torch
from thread_processes import in_processes

from alit_hf.cli import loading
from alit_hf.token_datasets import TokenDatasetInfo


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def expected(request, monkeypatch) -> str:
    """What the processor computes, if it is another one than this."""
    monkeypatch.setattr(loading, "_computes_bfloat16", lambda device: request.param)
    return "bfloat16" if request.param else "float32"


def test_the_token_data_set_names_what_was_taken(alit, photos, tmp_path, tiny_model, expected):
    arguments = ["tokenize", photos, "--num-tokens", 4, "--model", tiny_model, "--device", "cpu"]
    result = alit(*arguments, "--output", tmp_path / "out", "--dtype", "auto")
    assert result.code == 0
    assert f"alit: note: --dtype auto takes {expected}\n" in result.err
    assert TokenDatasetInfo.load(tmp_path / "out").dtype == expected
    other = {"bfloat16": "float32", "float32": "bfloat16"}[expected]
    assert alit(*arguments, "--output", tmp_path / "out", "--dtype", expected).code == 0
    assert alit(*arguments, "--output", tmp_path / "out", "--dtype", other).code == 2


def test_the_results_of_an_evaluation_name_what_was_taken(alit, photos, tmp_path, tiny_model, expected):
    arguments = ["--data", photos, "--lpips", "none", "--limit", 1, "--model", tiny_model, "--device", "cpu"]
    assert alit("evaluate", *arguments, "--output", tmp_path / "out.json", "--dtype", "auto").code == 0
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["dtype"] == expected


def test_nothing_is_said_of_a_dtype_that_was_asked_for(alit, photos, tmp_path, tiny_model):
    assert "dtype" not in alit("encode", photos / "a.jpg", "-o", tmp_path, "--model", tiny_model).err


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "onednn", "is_native"),
    [
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("x86_64", False, False, True, False),  # AVX-512 alone: oneDNN takes bfloat16 and computes in float32
        ("aarch64", False, False, True, True),
        ("arm64", False, False, False, False),
    ],
)
def test_processors(monkeypatch, machine, avx512_bf16, amx, onednn, is_native):
    monkeypatch.setattr(loading.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert loading._computes_bfloat16(torch.device("cpu")) is is_native


def test_all_processes_compute_in_the_same(monkeypatch, tiny_model, capsys):
    """Their rows become one data set, so one process without bfloat16 decides for all."""
    answers = iter([True, False, True])
    monkeypatch.setattr(loading, "_computes_bfloat16", lambda device: next(answers))
    made = in_processes(3, lambda processes: loading.load_model(tiny_model, "cpu", "auto", processes)[0].dtype)
    assert made == [torch.float32] * 3
    assert capsys.readouterr().err.count("--dtype auto takes float32") == 1
