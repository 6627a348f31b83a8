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
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: request.param)
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


def test_all_processes_compute_in_the_same(monkeypatch, tiny_model, capsys):
    """Their rows become one data set, so one process without bfloat16 decides for all."""
    answers = iter([True, False, True])
    monkeypatch.setattr(loading, "computes_bfloat16", lambda device: next(answers))
    made = in_processes(3, lambda processes: loading.load_model(tiny_model, "cpu", "auto", processes)[0].dtype)
    assert made == [torch.float32] * 3
    assert capsys.readouterr().err.count("--dtype auto takes float32") == 1
