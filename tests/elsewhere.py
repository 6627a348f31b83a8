"""A process with a cache of its own, where alit_hf may be missing."""

import os
import subprocess
import sys
from pathlib import Path


def run_elsewhere(tmp_path: Path, script: str, *arguments: object, installed: bool) -> None:
    """Runs `script`, in which importing alit_hf fails where it is not `installed`."""
    prelude = "import alit_hf" if installed else "import sys; sys.modules['alit_hf'] = None"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", f"{prelude}\n{script}", *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
