"""Rows of a data set of tokens back to pictures."""

import os
import reprlib
from collections.abc import Mapping, Sequence

from PIL import Image

from alit_hf.codes.picture_codes import decode_pictures
from alit_hf.codes.token_file import check_fingerprints, check_sizes, model_fingerprint
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel

from .info import TokenDatasetInfo


_COLUMNS = ("token_ids", "num_tokens", "original_size")


class TokenDecoder:
    """
    Decodes rows of a data set of tokens with the model that made them.

    Args:
        dataset (`str`, `Path` or [`TokenDatasetInfo`]): the folder or Hub id given to `load_dataset`, or the
            information stored there.
        model ([`ALITModel`]): in evaluation mode, of any dtype and on any device.
        processor ([`ALITImageProcessor`]): makes pictures of pixels.

    Raises:
        `ValueError`: if another model made the tokens; for a grid or codebook that the model does not decode (see
            [`~token_file.TokenFile.check_sizes`]); and as [`TokenDatasetInfo.load`].
        `OSError`: if the data set is not there.

    Example:

    ```python
    >>> import datasets
    >>> from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
    >>> from alit_hf.token_datasets import TokenDecoder

    >>> model = ALITModel.from_pretrained(pretrained_path()).eval()
    >>> processor = ALITImageProcessor.from_pretrained(pretrained_path())
    >>> codes = datasets.load_dataset("codes/", split="train")
    >>> decoder = TokenDecoder("codes/", model, processor)
    >>> pictures = decoder.decode(codes[:8])
    ```
    """

    def __init__(self, dataset: str | os.PathLike | TokenDatasetInfo, model: ALITModel, processor: ALITImageProcessor):
        self.info = dataset if isinstance(dataset, TokenDatasetInfo) else TokenDatasetInfo.load(dataset)
        self.model = model
        self.processor = processor
        check_fingerprints(bytes.fromhex(self.info.fingerprint), model_fingerprint(model))
        check_sizes(self.info.grid_size, self.info.codebook_size, model)

    def decode(self, rows: Mapping[str, Sequence] | Sequence[Mapping]) -> list[Image.Image]:
        """
        Args:
            rows (`Mapping[str, Sequence]` or `Sequence[Mapping]`): columns `token_ids`, `num_tokens` and
                `original_size` of some rows, as slices of a data set give them, plain or in the formats of `numpy` and
                `torch`; or a list of rows. They are one batch for the model.

        Returns:
            `list[PIL.Image.Image]`: the picture of each row in the model's size, as `alit decode` gives it.

        Raises:
            `ValueError`: for a single row or anything else that is not rows, and for ids that the model cannot have
                made, or a number of them that it cannot have made.
        """
        return decode_pictures(self.model, self.processor, [self.info.token_file(*row) for row in _values(rows)])


def _values(rows: Mapping[str, Sequence] | Sequence[Mapping]) -> list[tuple[list[int], int, list[int]]]:
    """The `_COLUMNS` of each row, as plain numbers."""
    try:
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in _COLUMNS}
        columns = ([_plain(value) for value in rows[name]] for name in _COLUMNS)
        return [(list(ids), number, list(size)) for ids, number, size in zip(*columns, strict=True)]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"`rows` is {reprlib.repr(rows)}, it must be rows with {', '.join(_COLUMNS)} as a slice of the data set "
            "gives them: `codes[:8]`, for one row `codes[:1]`"
        ) from error


def _plain(value):
    """A number or list of numbers, also if the data set's format makes arrays or tensors of them."""
    return value.tolist() if hasattr(value, "tolist") else value


__all__ = ["TokenDecoder"]
