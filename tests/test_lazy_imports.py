"""Importing the package costs nothing, and the Auto classes know its own in whatever order things are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import alit_hf


HEAVY = ("torch", "transformers", "diffusers", "datasets", "matplotlib")

AUTO_CLASSES = """
import alit_hf
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

folder = alit_hf.pretrained_path()
assert type(AutoConfig.from_pretrained(folder)) is alit_hf.ALITConfig
assert type(AutoImageProcessor.from_pretrained(folder)) is alit_hf.ALITImageProcessor
assert type(AutoModel.from_pretrained(folder)) is alit_hf.ALITModel
config = alit_hf.ALITConfig.from_pretrained(folder)
assert type(AutoModelForImageClassification.from_config(config)) is alit_hf.ALITForImageClassification
"""


def run(program: str, *arguments: str) -> str:
    """What `program` prints in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(alit_hf.__file__).parents[1])}
    command = [sys.executable, "-W", "error::DeprecationWarning:alit_hf", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import alit_hf",
        "from alit_hf import pretrained_path; dir(alit_hf)",
        "from alit_hf.cli import main; main(['--help'])",
        "from alit_hf.cli import main; main(['encode', '--help'])",
        "from alit_hf.cli import main; main(['analyze', '--help'])",
        "from alit_hf.cli import main; main(['encode', 'missing.png', '-o', 'codes/'])",
        "import transformers, alit_hf",
    ],
)
def test_nothing_heavy_is_imported(statement):
    program = f"import sys, alit_hf; {statement}; print('\\n', *({set(HEAVY)!r} & sys.modules.keys()))"
    imported = set(run(program).splitlines()[-1].split())
    assert imported == ({"transformers"} if "transformers" in statement else set())


@pytest.mark.parametrize(
    "first",
    [
        "import alit_hf",
        "import transformers, alit_hf",
        "from transformers import AutoModel; import alit_hf",
        "from alit_hf import ALITConfig",
        "import alit_hf.model.modeling_alit",
        # These import the Auto classes before they are complete themselves.
        "import alit_hf; import transformers.modeling_layers",
        "import alit_hf; from diffusers import AutoencoderKL",
    ],
)
def test_auto_classes_know_the_package_in_every_order(first):
    run(f"import warnings; warnings.simplefilter('ignore')\n{first}\n{AUTO_CLASSES}")


def test_pipelines_find_the_model():
    run(
        "import alit_hf; from transformers import pipeline\n"
        "extractor = pipeline('image-feature-extraction', model=alit_hf.pretrained_path())\n"
        "assert type(extractor.model) is alit_hf.ALITModel"
    )


def test_lpips_is_a_criterion_however_the_criteria_are_imported():
    program = "from alit_hf.model.selection import criterion_names; print(*criterion_names())"
    assert "lpips" in run(program).split()


def test_names_are_those_of_their_modules():
    assert set(alit_hf.__all__) <= set(dir(alit_hf))
    assert alit_hf.ALITModel.__module__ == "alit_hf.model.modeling_alit"
    with pytest.raises(AttributeError, match="'alit_hf' has no attribute 'ALITNothing'"):
        _ = alit_hf.ALITNothing


def test_type_checkers_see_what_is_there():
    """The names under `TYPE_CHECKING` are those that `__getattr__` gives."""
    source = Path(alit_hf.__file__).read_text(encoding="utf-8")
    block = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    seen = {
        name.strip(): line.split()[1].removeprefix(".")
        for line in block.splitlines()[1:]
        if line.strip()
        for name in line.split("import")[1].split(",")
    }
    assert seen == alit_hf._MODULES
