import platform

import pytest
import torch

from alit_hf.utils.native_bfloat16 import computes_bfloat16


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
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert computes_bfloat16(torch.device("cpu")) is is_native
