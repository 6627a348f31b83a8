"""The demo as a Space on the Hub: an app file, its requirements, a README, and this package."""

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import gradio
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCardData
from packaging.requirements import Requirement

import alit_hf
from alit_hf.utils.hub_repository import MODEL_FILES, open_repository


_PACKAGE = Path(alit_hf.__file__).parent
_DISTRIBUTION = "alit-hf"
# What setup.py installs.
_PACKAGE_FILES = ("**/*.py", "py.typed", "demo/*.css", "networks/*.txt")
_CHECKPOINT_FILES = tuple(f"checkpoints/*/{name}" for name in MODEL_FILES)
_MODEL_FOLDER = "model"
_APP_FILE = "app.py"

_APP = '''"""The demo of alit_hf, as `alit demo` serves it."""

from alit_hf.cli import main


main({arguments})
'''

_README = """---
{metadata}
---

# Adaptive length image tokenization

Drop in a picture and see it in 32 to 256 tokens, with the error and the bytes of every length, and what each token
stands for. What is dropped in is kept in memory only, for at most an hour without activity.

Made with `alit demo --push` of alit_hf {version}; the folder `alit_hf` is that package. The method is that of
[Adaptive Length Image Tokenization via Recurrent Allocation](https://arxiv.org/abs/2411.02393).
"""


def push_space(repo_id: str, model: str | None) -> str:
    """
    Creates or updates the Space in one commit. A new one is private.

    Args:
        repo_id (`str`): `ORG/NAME`.
        model (`str`, *optional*): a folder, which is pushed too, or a Hub id. Defaults to the checkpoint that comes
            with the package.

    Returns:
        the Space's URL.

    Raises:
        `HfHubHTTPError`: if the Hub refuses it.
        `LocalTokenNotFoundError`: without a login.
        `PermissionError`: with a login that may not write to it.
    """
    api = HfApi()
    url, _ = open_repository(repo_id, "space", space_sdk="gradio")
    files = space_files(model)
    stale = set(api.list_repo_files(repo_id, repo_type="space")) - {".gitattributes", *files}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
    api.create_commit(repo_id, operations, repo_type="space", commit_message=f"Demo of alit_hf {alit_hf.__version__}")
    return url


def space_files(model: str | None) -> dict[str, bytes | Path]:
    """
    The Space's files by name: their contents or local paths. Of the folders of package and model, only what belongs to
    them.

    Args:
        model (`str`, *optional*): as for `push_space`.
    """
    arguments, models, model_files = ["demo"], None, {}
    if model is not None and Path(model).is_dir():
        arguments += ["--model", _MODEL_FOLDER]
        model_files = dict(_files(Path(model), _MODEL_FOLDER, MODEL_FILES))
    elif model is not None:
        arguments += ["--model", model]
        models = [model]
    package_patterns = _PACKAGE_FILES + (_CHECKPOINT_FILES if model is None else ())
    return {
        "README.md": _readme(models).encode(),
        "requirements.txt": "".join(f"{requirement}\n" for requirement in space_requirements()).encode(),
        _APP_FILE: _APP.format(arguments=arguments).encode(),
        **dict(_files(_PACKAGE, _PACKAGE.name, package_patterns)),
        **model_files,
    }


def space_requirements() -> list[str]:
    """The package's requirements for the demo, without Gradio, whose version is in the Space's README."""
    requirements = map(Requirement, importlib.metadata.requires(_DISTRIBUTION))
    needed = (one for one in requirements if one.marker is None or one.marker.evaluate({"extra": "demo"}))
    return sorted(f"{one.name}{one.specifier}" for one in needed if one.name != "gradio")


def _readme(models: list[str] | None) -> str:
    major, minor, _ = platform.python_version_tuple()
    metadata = SpaceCardData(
        title="Adaptive length image tokenization",
        sdk="gradio",
        sdk_version=gradio.__version__,
        python_version=f"{major}.{minor}",
        app_file=_APP_FILE,
        license="apache-2.0",
        models=models,
        emoji="🎞️",
        colorFrom="indigo",
        colorTo="yellow",
        short_description="Every picture in as many tokens as it needs",
    )
    return _README.format(metadata=metadata.to_yaml(), version=alit_hf.__version__)


def _files(folder: Path, name: str, patterns: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        inside = path.relative_to(folder)
        if not any(part.startswith(".") for part in inside.parts):
            yield f"{name}/{inside.as_posix()}", path


__all__ = ["push_space", "space_files", "space_requirements"]
