"""
`alit analyze` over many processes: `accelerate launch training/analyze.py NAME --model M --data … --output DIR`, or
`torchrun --nproc_per_node N training/analyze.py NAME …`.

The options are those of `alit analyze NAME`, and so are the numbers, up to rounding. All processes must share DIR.
Exit codes: 0 done, 1 an image could not be decoded or the analysis failed, 2 wrong use.
"""

import argparse
import sys
from pathlib import Path


# Run as a file, Python puts this folder on the path, where `data.py` and others would hide other modules.
sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(arguments: list[str]) -> int:
    from alit_hf.cli import analyze
    from alit_hf.cli.errors import WRONG_USE, UsageError, print_error
    from training.many_processes import run_shared

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    analyze.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        analysis_class = analyze.load_class(parsed.name)
        options = analyze.parse_options(analysis_class, parsed.options)
    except UsageError as error:
        print_error(str(error))
        return WRONG_USE
    return run_shared(lambda processes: analyze.analyze(analysis_class, options, processes), options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
