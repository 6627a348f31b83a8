"""Runs commands of `alit` in two real processes."""

import os
import subprocess
import sys


def run_two(*arguments: str) -> subprocess.CompletedProcess:
    """`alit` with these arguments under torchrun, with what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "alit_hf.cli", *arguments], env=environment, capture_output=True, text=True, check=False
    )
