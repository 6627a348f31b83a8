"""
`alit evaluate` over many processes: `accelerate launch training/evaluate.py --model M --data … --output …`, or
`torchrun --nproc_per_node N training/evaluate.py …`.

The options are those of `alit evaluate`, and so are the numbers, up to rounding. Exit codes: 0 done, 1 an image could
not be decoded or the evaluation failed, 2 wrong use.
"""

import sys
from pathlib import Path


# Run as a file, Python puts this folder on the path, where `data.py` and others would hide other modules.
sys.path[0] = str(Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    from alit_hf.cli import evaluate
    from training.many_processes import run_command

    sys.exit(run_command(evaluate, __doc__, sys.argv[1:]))
