"""Runs the scripts of `training/` in two real processes."""

import os
import subprocess
import sys
from pathlib import Path


_TRAINING = Path(__file__).parents[1] / "training"


def run_two(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """A file of `training/` under torchrun, with what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(_TRAINING / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
