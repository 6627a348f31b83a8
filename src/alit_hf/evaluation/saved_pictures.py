"""Originals and reconstructions as PNG files, in the layout that other programs compute their metrics from."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from alit_hf.utils.error_reason import reason
from alit_hf.utils.processes import Processes
from alit_hf.utils.shown_text import shown
from alit_hf.utils.sole_use import LOCK_FILE, sole_use

from .settings import SettingsError


ORIGINALS = "originals"

_UNFINISHED = ".alit-unfinished"
# Of a PNG file besides its pixels and a byte a row: headers, and what is left of a block of the file system.
_REST_BYTES = 8192


def reconstructions_name(num_tokens: int) -> str:
    """The folder of the reconstructions of this length."""
    return f"tokens-{num_tokens}"


class SavedPictures:
    """
    Folders of PNG files: `originals`, and `tokens-N` for each length. The same image has the same name in all of them.

    Args:
        folder (`Path`): that they lie in.
        lengths (`Sequence[int]`): numbers of tokens whose reconstructions are saved.
    """

    def __init__(self, folder: Path, lengths: Sequence[int]):
        self.folder = folder
        self.names = [ORIGINALS, *map(reconstructions_name, lengths)]

    def add(self, name: str, indices: Sequence[int], pictures: Sequence[Image.Image]) -> None:
        """
        Saves the pictures of the images with these indices in the folder `name`.

        Raises:
            `OSError`: if one cannot be written.
        """
        for index, picture in zip(indices, pictures, strict=True):
            picture.save(self.folder / name / f"{index:06d}.png")


@contextmanager
def saved_pictures(
    folder: Path, lengths: Sequence[int], num_images: int, size: tuple[int, int], processes: Processes
) -> Iterator[SavedPictures]:
    """
    Context in which pictures are saved. They are in `folder` at its end, all at once; an exception leaves none there,
    and what is left by a process that was killed is removed by the next.

    Args:
        folder (`Path`): new or empty; shared by all processes.
        lengths (`Sequence[int]`): of the reconstructions.
        num_images (`int`): of all processes.
        size (`tuple[int, int]`): height and width of the pictures.
        processes ([`Processes`]): all of them leave the context, or none.

    Raises:
        `SettingsError`: on all processes and before any work, if the folder has anything in it, cannot be used or has
            less room than the pictures may need.
    """
    pictures = SavedPictures(folder / _UNFINISHED, lengths)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder, processes))
        except OSError as error:
            raise SettingsError(f"the pictures cannot be saved: {reason(error)}") from error
        problem = None
        if processes.rank == 0:
            try:
                _prepare(folder, pictures, num_images, size)
            except (OSError, SettingsError) as error:
                problem = reason(error)
        if problem := processes.gather([problem])[0]:
            raise SettingsError(problem)
        try:
            yield pictures
            processes.gather([])
            if processes.rank == 0:
                for name in pictures.names:
                    os.rename(pictures.folder / name, folder / name)
        finally:
            if processes.rank == 0:
                shutil.rmtree(pictures.folder, ignore_errors=True)


def _prepare(folder: Path, pictures: SavedPictures, num_images: int, size: tuple[int, int]) -> None:
    if others := sorted(path.name for path in folder.iterdir() if path.name not in (LOCK_FILE, _UNFINISHED)):
        raise SettingsError(
            f"the folder for reconstructions, {folder}, is not empty, it holds {shown(others[0])}: choose another, or "
            "empty it"
        )
    if pictures.folder.exists():
        shutil.rmtree(pictures.folder)
    height, width = size
    needed = num_images * len(pictures.names) * (height * (3 * width + 1) + _REST_BYTES)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SettingsError(
            f"the reconstructions may need {needed / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB left: save "
            "fewer lengths or images"
        )
    for name in pictures.names:
        (pictures.folder / name).mkdir(parents=True)


__all__ = ["ORIGINALS", "SavedPictures", "reconstructions_name", "saved_pictures"]
