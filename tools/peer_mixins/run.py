"""
Runs the tests that transformers has for every model of its own on ALIT: `make test-peer`. They come with the source
distribution of the installed version, which is downloaded once and unpacked in the cache; the files of overlay/ are
laid over them.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from alit_hf.utils.cache import cache_folder


ROOT = Path(__file__).parents[2]
OVERLAY = Path(__file__).parent / "overlay"


def transformers_source() -> Path:
    """The unpacked source distribution."""
    version = metadata.version("transformers")
    folder = cache_folder() / "peer"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"transformers-{version}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        source_only = ["--no-binary", "transformers", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, *source_only, f"transformers=={version}", "--dest", str(folder)], check=True)
    source = folder / f"transformers-{version}"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(archive) as contents:
        contents.extractall(folder, filter="data")
    return source


def main(arguments: Sequence[str]) -> int:
    """Runs pytest with `arguments`; gives its exit code."""
    source = transformers_source()
    shutil.copytree(OVERLAY, source, dirs_exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(source), str(ROOT / "src")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "pytest.ini", "-q", "-rs"]
    return subprocess.run([*command, "tests/models/alit", *arguments], cwd=source, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
