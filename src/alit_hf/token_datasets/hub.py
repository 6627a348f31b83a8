"""Data sets of tokens on the Hub: checks before the work whether one may be pushed, and pushes it afterwards."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, is_offline_mode
from huggingface_hub.errors import LocalTokenNotFoundError

from alit_hf.utils.hub_repository import open_repository

from .card import CARD_FILE, UNDECODABLE_FILE
from .info import INFO_FILE, TokenDatasetInfo
from .shards import Shards
from .tokenizing import OutputError


_OF_EVERY_REPOSITORY = {".gitattributes", CARD_FILE}


def check_repository(repo_id: str, info: TokenDatasetInfo) -> None:
    """
    Checks that this login may write to the repository, and creates it if there is none. It is then private.

    Args:
        repo_id (`str`): of a data set, `ORGANIZATION/NAME`.
        info ([`TokenDatasetInfo`]): of the tokens to push.

    Raises:
        [`OutputError`]: without a login, with one that may not write there, if the Hub cannot be reached, or if the
            repository holds anything but such tokens.
    """
    folder_instead = f"(for a folder write ./{repo_id})"
    if is_offline_mode():
        raise OutputError(f"{repo_id} is on the Hub, which is not asked while HF_HUB_OFFLINE is set {folder_instead}")
    try:
        open_repository(repo_id, "dataset")
        files = set(HfApi().list_repo_files(repo_id, repo_type="dataset"))
        differences = info.differences(TokenDatasetInfo.load(repo_id)) if INFO_FILE in files else []
    except LocalTokenNotFoundError as error:
        raise OutputError(
            f"pushing to {repo_id} needs a login: run `hf auth login`, or set HF_TOKEN {folder_instead}"
        ) from error
    except Exception as error:  # the Hub's client raises its own and those of the connection
        raise OutputError(f"the data set {repo_id} on the Hub cannot be used: {error} {folder_instead}") from error
    if differences:
        raise OutputError(f"the data set {repo_id} holds tokens of another run, {'; '.join(differences)}")
    others = sorted(files - _OF_EVERY_REPOSITORY)
    if others and INFO_FILE not in files:
        raise OutputError(f"the data set {repo_id} holds something else already, {others[0]}")


def push(folder: Path, repo_id: str) -> str:
    """
    Pushes a finished data set of tokens in one commit.

    Returns:
        the commit's URL.

    Raises:
        `OSError`: if the Hub refuses or cannot be reached.
    """
    shards = Shards(folder, TokenDatasetInfo.load(folder).output_split)
    paths = [*shards.paths(), *(folder / name for name in (INFO_FILE, UNDECODABLE_FILE, CARD_FILE))]
    operations = [
        CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path) for path in paths
    ]
    commit = HfApi().create_commit(repo_id, operations, repo_type="dataset", commit_message="Tokens by alit tokenize")
    return commit.commit_url


__all__ = ["check_repository", "push"]
