"""A depth model of the class of Depth Anything, tiny and random."""

from pathlib import Path

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor


def save_tiny_depth_model(folder: Path) -> str:
    """Saves model and image processor for pictures of 28 pixels; gives the folder."""
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        # Away from the ReLU's dead half.
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)
