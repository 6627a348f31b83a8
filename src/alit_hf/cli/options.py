"""Options that several commands share."""

import argparse

from alit_hf.utils.option_types import positive_integer


def add_batch_size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", metavar="B", type=positive_integer, default=8, help="files at a time (default: %(default)s)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="M", help="a folder or a Hub id (default: the checkpoint that comes with the package)"
    )
    parser.add_argument("--device", metavar="D", help="such as cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="what the model computes in (default: %(default)s)",
    )
