"""What all rows of a data set of tokens have in common (`tokenization.json`), and a summary of what it holds."""

import dataclasses
import json
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from alit_hf.codes.picture_codes import PictureEncoder
from alit_hf.codes.token_file import (
    FINGERPRINT_SIZE,
    MAX_TOKENS,
    TokenFile,
    checked_codebook_size,
    checked_grid_size,
    length_predictor_fingerprint,
    whole_number,
)
from alit_hf.data.image_rows import ImageRows
from alit_hf.data.sources import is_hub_id
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.utils.public_names import public_name


INFO_FILE = "tokenization.json"

# Far above what is written, and far below what would fill the memory.
_MAX_FILE_SIZE = 2**24

# These names may change without changing the rows: what they name has a fingerprint.
_NAMES = ("model", "sources", "config_name")


@dataclass(frozen=True, kw_only=True)
class TokenDatasetInfo:
    """
    Everything that determines the rows of a data set of tokens, and that decoding them needs.

    Args:
        model (`str`): a Hub id, or the last part of a path.
        fingerprint (`str`): of the model's weights, see [`~token_file.model_fingerprint`]; 16 hexadecimal digits.
        dtype (`str`): dtype that the model computed in, such as `"float32"`.
        image_processor (`dict`): fields of the image processor.
        grid_size (`list[int]`): rows and columns of the base tokenizer's grid.
        codebook_size (`int`): entries of the latent codebook.
        threshold (`float`, *optional*), num_tokens (`int`, *optional*), criterion (`str`), confidence (`float`,
            *optional*): the [`LengthChoice`].
        length_predictor (`str`, *optional*): with a confidence, 16 hexadecimal digits that identify the model's length
            predictor and its calibration.
        sources (`list[str]`): Hub ids, or last parts of paths, of the data.
        config_name (`str`, *optional*): the configuration that was asked for, of the data.
        split (`str`, *optional*): of the data.
        data_fingerprint (`str`): see [`~image_rows.ImageRows`].
        image_column (`str`): the column that the tokens replace.
        kept_columns (`list[str]`, *optional*): the other columns, if some of the data's were left out.
        rows_per_shard (`int`): rows of the data in a shard; fewer at the end of a part.

    Raises:
        `ValueError`: if a field is not as above: data sets come from others. Grid and codebook have the limits of an
            `.alit` file, see [`~token_file.TokenFile`].
    """

    model: str
    fingerprint: str
    dtype: str
    image_processor: dict
    grid_size: list[int]
    codebook_size: int
    threshold: float | None
    num_tokens: int | None
    criterion: str
    confidence: float | None = None
    length_predictor: str | None = None
    sources: list[str]
    split: str | None
    data_fingerprint: str
    image_column: str
    rows_per_shard: int
    config_name: str | None = None
    kept_columns: list[str] | None = None

    def __post_init__(self):
        texts = ("model", "fingerprint", "dtype", "criterion", "data_fingerprint", "image_column")
        optional = [name for name in ("split", "config_name") if getattr(self, name) is not None]
        for name in (*texts, *optional):
            self._check(name, isinstance(getattr(self, name), str), "text")
        is_fingerprint = re.fullmatch(f"[0-9a-f]{{{2 * FINGERPRINT_SIZE}}}", self.fingerprint)
        self._check("fingerprint", is_fingerprint, f"{2 * FINGERPRINT_SIZE} hexadecimal digits")
        # It becomes a part of file names.
        self._check("split", self.split is None or re.fullmatch(r"\w+(\.\w+)*", self.split), "letters and digits")
        self._check("image_processor", isinstance(self.image_processor, dict), "an object")
        for name in ("sources",) if self.kept_columns is None else ("sources", "kept_columns"):
            texts = getattr(self, name)
            are_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            self._check(name, are_texts, "a list of texts")
        checked_grid_size(self.grid_size)
        checked_codebook_size(self.codebook_size)
        whole_number("rows_per_shard", self.rows_per_shard, 1, 2**63 - 1)
        if self.threshold is None:
            whole_number("num_tokens", self.num_tokens, 1, MAX_TOKENS)
        else:
            is_number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
            self._check("threshold", is_number and self.threshold == self.threshold, "a number")
            self._check("num_tokens", self.num_tokens is None, "null beside a threshold")
        # `tokenization.json` of earlier versions has neither.
        predicted = self.confidence is not None
        if predicted:
            is_number = isinstance(self.confidence, int | float) and 0 < self.confidence < 1
            self._check("confidence", is_number and self.threshold is not None, "null, or in (0, 1) with a threshold")
        is_text = isinstance(self.length_predictor, str)
        self._check("length_predictor", is_text == predicted, "text beside a confidence, and null without")

    def _check(self, name: str, holds: object, allowed: str) -> None:
        if not holds:
            raise ValueError(f"`{name}` is {reprlib.repr(getattr(self, name))}, it must be {allowed}")

    @classmethod
    def describe(
        cls, rows: ImageRows, encoder: PictureEncoder, processor: ALITImageProcessor, rows_per_shard: int
    ) -> "TokenDatasetInfo":
        """Describes the data set of tokens that these arguments produce."""
        model = encoder.model
        return cls(
            model=public_name(model.name_or_path),
            fingerprint=encoder.fingerprint.hex(),
            dtype=str(model.dtype).removeprefix("torch."),
            image_processor=json.loads(processor.to_json_string()),
            grid_size=list(model.config.grid_size),
            codebook_size=model.config.codebook_size,
            **dataclasses.asdict(encoder.choice),
            length_predictor=None if encoder.choice.confidence is None else length_predictor_fingerprint(model).hex(),
            sources=[public_name(source) for source in rows.sources],
            config_name=rows.config_name,
            split=rows.split,
            data_fingerprint=rows.fingerprint,
            image_column=rows.image_column,
            kept_columns=rows.kept_columns,
            rows_per_shard=rows_per_shard,
        )

    @property
    def output_split(self) -> str:
        """The split that `load_dataset` finds the rows in."""
        return self.split or "train"

    def differences(self, other: "TokenDatasetInfo") -> list[str]:
        """The differences that would change the rows, in words."""
        return [
            f"{name} was {before!r} and is now {now!r}"
            for name, before, now in (
                (field.name, getattr(other, field.name), getattr(self, field.name))
                for field in dataclasses.fields(self)
            )
            if name not in _NAMES and before != now
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "TokenDatasetInfo":
        """
        Raises:
            `ValueError`: if the text is not what `to_json` gives.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{INFO_FILE} was not written by `alit tokenize`: {error}") from error

    @classmethod
    def load(cls, dataset: str | os.PathLike) -> "TokenDatasetInfo":
        """
        Args:
            dataset (`str` or `Path`): a folder that `alit tokenize` wrote, or a Hub id.

        Raises:
            `ValueError`: if `dataset` is neither, or the file in it was not written by `alit tokenize`.
            `OSError`: if the file is missing or cannot be read.
        """
        path = Path(dataset, INFO_FILE)
        if not Path(dataset).is_dir():
            if not is_hub_id(str(dataset)):
                raise ValueError(
                    f"`dataset` is {str(dataset)!r}, it must be a folder that exists or a Hub id, ORGANIZATION/NAME"
                )
            path = Path(huggingface_hub.hf_hub_download(str(dataset), INFO_FILE, repo_type="dataset"))
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_SIZE + 1)
        if len(text) > _MAX_FILE_SIZE:
            raise ValueError(f"{path} has more than {_MAX_FILE_SIZE} bytes, it was not written by `alit tokenize`")
        return cls.from_json(text)

    def token_file(self, token_ids: list[int], num_tokens: int, original_size: list[int]) -> TokenFile:
        """
        A row as the contents of an `.alit` file.

        Raises:
            `ValueError`: if the values cannot belong to one row.
        """
        if len(token_ids) != num_tokens:
            raise ValueError(f"`token_ids` has {len(token_ids)} ids, `num_tokens` is {num_tokens}: they must agree")
        return TokenFile(
            token_ids=token_ids,
            original_size=tuple(original_size),
            grid_size=tuple(self.grid_size),
            codebook_size=self.codebook_size,
            fingerprint=bytes.fromhex(self.fingerprint),
        )


@dataclass(frozen=True)
class TokenDatasetSummary:
    """
    What a finished data set of tokens holds.

    Args:
        num_images (`int`): rows.
        num_undecodable (`int`): pictures that could not be decoded and have no row.
        lengths (`dict[int, int]`): number of rows for each number of tokens, shortest first.
        num_unsatisfied (`int`): rows whose score does not meet the threshold at full length.
        was_complete (`bool`): whether all rows were there already, so that nothing was tokenized.
        damage (`list[str]`): of each damaged file of the data, which of its rows are missing and why.
    """

    num_images: int
    num_undecodable: int
    lengths: dict[int, int]
    num_unsatisfied: int
    was_complete: bool
    damage: list[str]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(length * count for length, count in self.lengths.items())


__all__ = ["INFO_FILE", "TokenDatasetInfo", "TokenDatasetSummary"]
