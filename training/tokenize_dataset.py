"""
`alit tokenize` over many processes: `accelerate launch training/tokenize_dataset.py DATASET --output OUT …`, or
`torchrun --nproc_per_node N training/tokenize_dataset.py …`.

The options are those of `alit tokenize`, and so is what comes out, whatever the number of processes, which may be
another one when a run goes on. With several nodes the output must be on a disk that all share. Exit codes: 0 done, 1
an image could not be decoded or tokenizing failed, 2 wrong use.
"""

import sys
from pathlib import Path


# Run as a file, Python puts this folder on the path, where `data.py` and others would hide other modules.
sys.path[0] = str(Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    from alit_hf.cli import tokenize
    from training.many_processes import run_command

    sys.exit(run_command(tokenize, __doc__, sys.argv[1:]))
