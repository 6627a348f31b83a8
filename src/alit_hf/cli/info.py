"""`alit info`: what is in an `.alit` file or a model."""

import argparse
import os
from pathlib import Path

from alit_hf.utils.shown_text import shown

from .errors import FileError, UsageError, file_problem
from .printing import print_line


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="what is in an .alit file or a model",
        description="Shows the contents of an .alit file, or a model's sizes and the bytes of its codes.",
    )
    parser.add_argument(
        "target",
        metavar="FILE-or-MODEL",
        nargs="?",
        help="an .alit file, a model's folder or a Hub id (default: the model that comes with the package)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    target = arguments.target
    if target is not None and os.path.lexists(target) and not os.path.isdir(target):
        lines = _describe_file(Path(target))
    elif target is not None and Path(target).suffix == ".alit":
        raise UsageError(f"{target} does not exist")
    else:
        lines = _describe_model(target)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print_line(f"{name:{width}}  {value}")
    return 0


def _describe_file(path: Path) -> list[tuple[str, str]]:
    from alit_hf.codes.token_file import TokenFile

    try:
        tokens = TokenFile.load(path)
    except (OSError, ValueError) as error:
        raise FileError(file_problem(path, error)) from error
    bits = (tokens.codebook_size - 1).bit_length()
    width, height = tokens.original_size
    rows, columns = tokens.grid_size
    return [
        ("file", f"{shown(path)}, {len(tokens.to_bytes())} bytes"),
        ("original", f"{width} x {height} pixels"),
        ("grid", f"{rows} x {columns} positions"),
        ("tokens", f"{tokens.num_tokens}, {(tokens.num_tokens * bits + 7) // 8} bytes at {bits} bits"),
        ("codebook", f"{tokens.codebook_size} codes"),
        ("model fingerprint", tokens.fingerprint.hex()),
        ("token ids", " ".join(map(str, tokens.token_ids.tolist()))),
    ]


def _describe_model(name: str | None) -> list[tuple[str, str]]:
    from alit_hf.codes.rollout_pictures import payload_bytes
    from alit_hf.codes.token_file import model_fingerprint

    from .loading import load_model

    model, _ = load_model(name, device="cpu")
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_base_parameters = sum(parameter.numel() for parameter in model.base_tokenizer.parameters())
    height, width = config.image_height_width
    rows, columns = config.grid_size
    layers = f"{config.num_encoder_layers} encoder and {config.num_decoder_layers} decoder layers"
    lengths = range(config.tokens_per_rollout, config.max_tokens + 1, config.tokens_per_rollout)
    lines = [
        ("model", config.name_or_path),
        ("parameters", f"{num_parameters:,}, {num_base_parameters:,} of them in the base tokenizer"),
        ("pictures", f"{width} x {height} pixels, {rows} x {columns} positions of {config.patch_size} pixels"),
        ("base tokenizer", _describe_base(config)),
        ("transformers", f"width {config.hidden_size}, {config.num_attention_heads} heads, {layers}"),
        ("rollouts", f"{config.max_rollouts}, {config.tokens_per_rollout} latent tokens each"),
    ]
    if config.quantize:
        lines.append(("codebook", f"{config.codebook_size} codes of dimension {config.codebook_dim}"))
        lines += [(f"{num_tokens} tokens", f"{payload_bytes(config, num_tokens)} bytes") for num_tokens in lengths]
        lines.append(("fingerprint", model_fingerprint(model).hex()))
    else:
        lines.append(("codebook", f"none, continuous latent tokens of dimension {config.codebook_dim}"))
    return lines


def _describe_base(config) -> str:
    if config.base_type == "kl":
        return f"KL VAE, latents of {config.base_embed_dim} channels"
    return f"VQGAN, {config.base_output_dim} codes of dimension {config.base_embed_dim}"
