"""`alit info`: what is in an `.alit` file or a model."""

import argparse
import os
from pathlib import Path

from alit_hf.utils.shown_text import shown

from .errors import FileError, UsageError, file_problem
from .jobs import STREAM, check_stdin, open_source, source_name
from .printing import add_printing_arguments, print_json, print_line


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
        help="an .alit file, or - for stdin; a model's folder or a Hub id (default: the model that comes with the "
        "package)",
    )
    add_printing_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    target = arguments.target
    if target == STREAM:
        check_stdin()
        facts, lines = _describe_file(None)
    elif target is not None and os.path.lexists(target) and not os.path.isdir(target):
        facts, lines = _describe_file(Path(target))
    elif target is not None and Path(target).suffix == ".alit":
        raise UsageError(f"{target} does not exist")
    else:
        facts, lines = _describe_model(target)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print_line(f"{name:{width}}  {value}")
    print_json(facts)
    return 0


def _describe_file(path: Path | None) -> tuple[dict, list[tuple[str, str]]]:
    """For programs and for people."""
    from alit_hf.codes.token_file import TokenFile

    try:
        tokens = TokenFile.load(open_source(path))
    except (OSError, ValueError) as error:
        raise FileError(file_problem(source_name(path), error)) from error
    bits = (tokens.codebook_size - 1).bit_length()
    facts = {
        "file": source_name(path),
        "file_bytes": len(tokens.to_bytes()),
        "original_size": tokens.original_size,
        "grid_size": tokens.grid_size,
        "num_tokens": tokens.num_tokens,
        "bytes": (tokens.num_tokens * bits + 7) // 8,
        "codebook_size": tokens.codebook_size,
        "fingerprint": tokens.fingerprint.hex(),
        "token_ids": tokens.token_ids.tolist(),
    }
    width, height = tokens.original_size
    rows, columns = tokens.grid_size
    return facts, [
        ("file", f"{shown(facts['file'])}, {facts['file_bytes']} bytes"),
        ("original", f"{width} x {height} pixels"),
        ("grid", f"{rows} x {columns} positions"),
        ("tokens", f"{tokens.num_tokens}, {facts['bytes']} bytes at {bits} bits"),
        ("codebook", f"{tokens.codebook_size} codes"),
        ("model fingerprint", facts["fingerprint"]),
        ("token ids", " ".join(map(str, facts["token_ids"]))),
    ]


def _describe_model(name: str | None) -> tuple[dict, list[tuple[str, str]]]:
    """For programs and for people."""
    from alit_hf.codes.rollout_pictures import payload_bytes
    from alit_hf.codes.token_file import model_fingerprint

    from .loading import load_model

    model, _ = load_model(name, device="cpu")
    config = model.config
    lengths = range(config.tokens_per_rollout, config.max_tokens + 1, config.tokens_per_rollout)
    facts = {
        "model": config.name_or_path,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_base_parameters": sum(parameter.numel() for parameter in model.base_tokenizer.parameters()),
        "image_size": config.image_height_width,
        "grid_size": config.grid_size,
        "patch_size": config.patch_size,
        "base_type": config.base_type,
        "base_embed_dim": config.base_embed_dim,
        "base_codebook_size": config.base_output_dim if config.base_type == "vqgan" else None,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_encoder_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "max_rollouts": config.max_rollouts,
        "tokens_per_rollout": config.tokens_per_rollout,
        "quantize": config.quantize,
        "codebook_size": config.codebook_size if config.quantize else None,
        "codebook_dim": config.codebook_dim,
        "lengths": [
            {"num_tokens": num_tokens, "bytes": payload_bytes(config, num_tokens) if config.quantize else None}
            for num_tokens in lengths
        ],
        "fingerprint": model_fingerprint(model).hex() if config.quantize else None,
    }
    height, width = config.image_height_width
    rows, columns = config.grid_size
    layers = f"{config.num_encoder_layers} encoder and {config.num_decoder_layers} decoder layers"
    lines = [
        ("model", config.name_or_path),
        (
            "parameters",
            f"{facts['num_parameters']:,}, {facts['num_base_parameters']:,} of them in the base tokenizer",
        ),
        ("pictures", f"{width} x {height} pixels, {rows} x {columns} positions of {config.patch_size} pixels"),
        ("base tokenizer", _describe_base(config)),
        ("transformers", f"width {config.hidden_size}, {config.num_attention_heads} heads, {layers}"),
        ("rollouts", f"{config.max_rollouts}, {config.tokens_per_rollout} latent tokens each"),
    ]
    if config.quantize:
        lines.append(("codebook", f"{config.codebook_size} codes of dimension {config.codebook_dim}"))
        lines += [(f"{length['num_tokens']} tokens", f"{length['bytes']} bytes") for length in facts["lengths"]]
        lines.append(("fingerprint", facts["fingerprint"]))
    else:
        lines.append(("codebook", f"none, continuous latent tokens of dimension {config.codebook_dim}"))
    return facts, lines


def _describe_base(config) -> str:
    if config.base_type == "kl":
        return f"KL VAE, latents of {config.base_embed_dim} channels"
    return f"VQGAN, {config.base_output_dim} codes of dimension {config.base_embed_dim}"
