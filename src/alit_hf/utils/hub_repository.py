"""Repositories on the Hub that are written to, and what of a model's folder goes there."""

from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


WEIGHT_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
"""Names, as patterns, of the weights that `save_pretrained` of transformers and diffusers writes."""

MODEL_FILES = ("config.json", "preprocessor_config.json", *WEIGHT_FILES)
"""Names, as patterns, of all that is pushed of a model's folder, besides code."""

_REFUSED = (401, 403, 404)


class Repository(NamedTuple):
    """A repository that this login may write to."""

    url: str
    is_private: bool


def open_repository(repo_id: str, repo_type: str = "model", private: bool = True, **of_new: Any) -> Repository:
    """
    Makes sure that this login may write to a repository, which is created if it is missing. An existing one stays
    private or public, as it is.

    Args:
        repo_id (`str`): `ORG/NAME`.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`): whether a new one is private.
        of_new: further arguments of `HfApi.create_repo`.

    Raises:
        `LocalTokenNotFoundError`: without a login.
        `PermissionError`: if the login may read the repository, but not write to it.
        `HfHubHTTPError`: if the Hub refuses the login, or to create the repository.
        what the Hub's client raises if it cannot be reached.
    """
    api = HfApi()
    api.whoami()  # the other calls do not distinguish a missing login from a repository without write access
    # Passes for a repository that exists, whatever the login may do there.
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **of_new)
    try:
        api.auth_check(repo_id, repo_type=repo_type, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in _REFUSED:
            raise
        raise PermissionError(f"this login may not write to {repo_id}: use a token with write access to it") from error
    return Repository(str(url), bool(api.repo_info(repo_id, repo_type=repo_type).private))


__all__ = ["MODEL_FILES", "WEIGHT_FILES", "Repository", "open_repository"]
