"""A tiny model whose codes differ in length, and a data set in two parquet files with one picture that is broken."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lively_model import lively_model
from token_data import BROKEN, NUM_ROWS, png, write_parquet

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.codes.length_choice import LengthChoice
from alit_hf.codes.picture_codes import Picture, PictureEncoder, to_picture
from alit_hf.data.image_rows import ImageRows, open_rows
from alit_hf.model.image_io import open_image
from alit_hf.token_datasets.info import TokenDatasetInfo, TokenDatasetSummary
from alit_hf.token_datasets.tokenizing import tokenize_rows
from alit_hf.utils.processes import Processes


@pytest.fixture(scope="session")
def model() -> ALITModel:
    return lively_model()


@pytest.fixture(scope="session")
def processor(model) -> ALITImageProcessor:
    return ALITImageProcessor.for_config(model.config)


@pytest.fixture(scope="session")
def parquet(tmp_path_factory) -> Path:
    """Folder of two files, with 7 and 4 rows; the one of number `BROKEN` cannot be decoded."""
    folder = tmp_path_factory.mktemp("parquet")
    start = 0
    for file, count in enumerate(NUM_ROWS):
        write_parquet(folder / f"{file}.parquet", range(start, start + count))
        start += count
    return folder


@pytest.fixture(scope="session")
def pictures(processor) -> dict[int, Picture]:
    """What the model sees of each row, by its number."""
    numbers = [number for number in range(sum(NUM_ROWS)) if number != BROKEN]
    return {number: to_picture(open_image(png(number)), processor) for number in numbers}


@pytest.fixture(scope="session")
def choice(model, pictures) -> LengthChoice:
    """A threshold that some pictures meet at once, some later and some never."""
    scores = [PictureEncoder(model, LengthChoice(threshold=9.0)).encode([p])[0].score for p in pictures.values()]
    return LengthChoice(threshold=sorted(scores)[len(scores) // 2])


@dataclass
class Tokenizer:
    """Runs `tokenize_rows` with what the fixtures give, where nothing else is given."""

    model: ALITModel
    processor: ALITImageProcessor
    choice: LengthChoice
    data: Path

    def __call__(
        self,
        folder: Path,
        *,
        rows: ImageRows | None = None,
        model: ALITModel | None = None,
        choice: LengthChoice | None = None,
        rows_per_shard: int = 3,
        batch_size: int = 2,
        processes: Processes | None = None,
        num_workers: int = 2,
    ) -> TokenDatasetSummary | None:
        rows = rows or open_rows([str(self.data)])
        encoder = PictureEncoder(model or self.model, choice or self.choice)
        info = TokenDatasetInfo.describe(rows, encoder, self.processor, rows_per_shard)
        return tokenize_rows(rows, encoder, self.processor, info, folder, batch_size, processes, num_workers)


@pytest.fixture
def tokenize(model, processor, choice, parquet) -> Callable:
    return Tokenizer(model, processor, choice, parquet)
