"""`alit convert`: checkpoints of others to the formats of this package and of diffusers."""

import argparse
import os
import tempfile
from pathlib import Path

from alit_hf.utils.option_types import positive_integer

from .errors import FileError, UsageError, file_problem
from .jobs import check_writable
from .printing import add_quiet_argument, print_line


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="a published checkpoint to a model folder",
        description="Converts a published ALIT checkpoint to a folder that `--model` and `from_pretrained` load, or a "
        "VQGAN of taming-transformers or LlamaGen to a diffusers VQModel, from which the stage `distill` of training "
        "can start. Nothing in the file is executed.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the published file (.pth, .pt, .ckpt or .safetensors)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, help="the new folder; it must be empty if it exists"
    )
    parser.add_argument(
        "--num-attention-heads",
        metavar="N",
        type=positive_integer,
        help="heads of an ALIT model's transformers; needed if width and depth are not those of a published one",
    )
    add_quiet_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    checkpoint, folder = Path(arguments.checkpoint), Path(arguments.output)
    if not checkpoint.is_file():
        raise UsageError(f"{checkpoint} {'is not a file' if checkpoint.exists() else 'does not exist'}")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"the output {folder} is not empty")
    check_writable(folder)
    check_writable(folder.absolute().parent)

    from alit_hf.conversion import load_original
    from alit_hf.model.image_processing_alit import ALITImageProcessor
    from alit_hf.model.modeling_alit import ALITModel

    from .loading import quiet_libraries

    quiet_libraries()
    try:
        model = load_original(checkpoint, num_attention_heads=arguments.num_attention_heads)
    except (OSError, ValueError) as error:
        raise FileError(file_problem(checkpoint, error)) from error
    is_alit = isinstance(model, ALITModel)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".alit-") as unfinished:
            # A subfolder, because only its owner may read the temporary one.
            converted = Path(unfinished, "model")
            model.save_pretrained(converted)
            if is_alit:
                ALITImageProcessor.for_config(model.config).save_pretrained(converted)
            if folder.exists():
                folder.rmdir()
            os.replace(converted, folder)
    except OSError as error:
        raise FileError(file_problem(folder, error)) from error
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if is_alit:
        kind = f"up to {model.config.max_tokens} tokens"
    else:
        kind = f"a VQModel of {model.config.num_vq_embeddings} codes of dimension {model.config.vq_embed_dim}"
    print_line(f"{folder}: {num_parameters:,} parameters, {kind}")
    return 0
