"""
Data sets of tokens: parquet with a code for each picture of another data set.

`alit tokenize` writes them (`tokenizing.tokenize_rows`), `datasets.load_dataset` reads them, and a [`TokenDecoder`]
makes pictures of their rows.
"""

from .decoding import TokenDecoder
from .info import TokenDatasetInfo


__all__ = ["TokenDatasetInfo", "TokenDecoder"]
