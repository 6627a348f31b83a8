"""Dropped files: pictures, `.alit` files, and anything else. Read once and deleted."""

from pathlib import Path

from PIL import Image

from alit_hf.codes.token_file import MAGIC, TokenFile
from alit_hf.model.image_io import open_image
from alit_hf.utils.error_reason import reason

from .codes import Kept
from .tokenizer import DemoTokenizer


MAX_UPLOAD_BYTES = 20 * 2**20
"""Size of a file above which it is refused; photos of 12 megapixels have 3 to 8 MB."""


MAX_MEGAPIXELS = 40
"""Size of a picture above which it is refused, as everyone else waits while it is read."""


class UploadError(Exception):
    """A dropped file cannot be shown; the message is for the user."""


def process_upload(tokenizer: DemoTokenizer, path: str) -> Kept:
    """
    Encodes the picture or decodes the `.alit` file at a path. The file is deleted first, even if it is neither.

    Args:
        tokenizer (`DemoTokenizer`)
        path (`str`): a copy of the dropped file, under its original name.

    Raises:
        `UploadError`: if it is neither, broken, from another model, or gone.
    """
    name = Path(path).name
    content = take_upload(path)
    try:
        if isinstance(content, TokenFile):
            return tokenizer.decode(name, content)
        return tokenizer.encode(name, content)
    except (ValueError, RuntimeError) as error:
        raise UploadError(f"{name} cannot be shown: {reason(error).rstrip('.')}.") from error


def take_upload(path: str) -> Image.Image | TokenFile:
    """
    Reads a file and deletes it, even if it cannot be read. A token file is recognised by its suffix or first bytes.

    Raises:
        `UploadError`: if it is neither, broken, gone or too large.
    """
    file = Path(path)
    if file.is_dir():
        raise UploadError("A folder cannot be shown. Please drop in a file.")
    try:
        if file.suffix.lower() == ".alit" or _begins_as_token_file(file):
            return TokenFile.load(file)
        _check_size(file)
        return open_image(file)
    except FileNotFoundError as error:
        raise UploadError(f"{file.name} has waited too long and was deleted. Please drop it in again.") from error
    except (OSError, ValueError) as error:
        # The folder must not be shown.
        why = reason(error).replace(str(file), file.name).rstrip(".")
        raise UploadError(f"{why}. Please drop in a picture (JPEG, PNG, WebP, …) or an .alit file.") from error
    finally:
        file.unlink(missing_ok=True)


def _check_size(file: Path) -> None:
    try:
        with Image.open(file) as picture:
            megapixels = picture.width * picture.height / 1e6
    except Exception:  # whatever Pillow raises: `open_image` reports it
        return
    if megapixels > MAX_MEGAPIXELS:
        raise UploadError(f"{file.name} has {megapixels:.0f} megapixels, at most {MAX_MEGAPIXELS} can be shown.")


def _begins_as_token_file(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


__all__ = ["MAX_MEGAPIXELS", "MAX_UPLOAD_BYTES", "UploadError", "process_upload", "take_upload"]
