"""Scripts of training/ over two real processes."""

import os
import subprocess
import sys
from pathlib import Path


TRAINING = Path(__file__).parents[1] / "training"


def run_two(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(TRAINING / script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
