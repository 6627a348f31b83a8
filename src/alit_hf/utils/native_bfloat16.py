"""Whether a device computes in bfloat16 or only emulates it."""

import platform

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. Everywhere else it is emulated, slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        # That of oneDNN is true for any AVX-512.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
