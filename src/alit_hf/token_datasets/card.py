"""The `README.md` of a data set of tokens, for `load_dataset`, the Hub and people."""

import yaml

from alit_hf.model.selection import good_side, resolve_criterion, with_unit
from alit_hf.utils.image_count import image_count
from alit_hf.utils.shown_text import shown

from .info import INFO_FILE, TokenDatasetInfo, TokenDatasetSummary
from .shards import Shards


CARD_FILE = "README.md"
UNDECODABLE_FILE = "undecodable.jsonl"


def card(info: TokenDatasetInfo, shards: Shards, summary: TokenDatasetSummary) -> str:
    """The card's text, with its metadata in front."""
    metadata = {
        "tags": ["alit", "image-tokenization"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": shards.split, "path": shards.pattern}],
                # What `load_dataset` has cached of a folder, it takes for any other of the same name and metadata.
                "description": f"SHA-256 of the shards: {shards.digest()}",
            }
        ],
    }
    score = "what the threshold was compared with"
    if info.threshold is None:
        lengths = f"{info.num_tokens} tokens each"
    else:
        criterion = resolve_criterion(info.criterion)
        threshold = with_unit(criterion, f"{info.threshold:g}")
        lengths = f"each in the fewest that bring `{info.criterion}` {good_side(criterion)} {threshold}, or in all"
    if info.confidence is not None:
        lengths += f"; predicted, so that a share of {info.confidence:g} of pictures like the calibration's keep this"
        score = f"a bound on `{info.criterion}` that the length predictor gave"
    data = ", ".join(f"`{source}`" for source in info.sources)
    data += "".join(
        f", {what} `{name}`" for what, name in (("configuration", info.config_name), ("split", info.split)) if name
    )
    others = "The other columns are those of the data, whose terms apply."
    if info.kept_columns is not None:
        kept = ", ".join(f"`{shown(name)}`" for name in info.kept_columns) or "none"
        others = f"Of the other columns of the data, whose terms apply, it has {kept}."
    damage = "".join(f" {file}." for file in summary.damage)
    counts = "\n".join(f"| {length} | {count} |" for length, count in summary.lengths.items())
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---
# Tokens of {data}
The pictures of {data} in tokens of the [ALIT](https://arxiv.org/abs/2411.02393) model `{info.model}`, {lengths}.

{image_count(summary.num_images)} with {summary.num_tokens} tokens. {summary.num_undecodable} could not be
decoded and have no row, see `{UNDECODABLE_FILE}`.{damage}

| tokens | images |
|---|---|
{counts}

- `token_ids` mean something only together with `num_tokens`: a code is not a prefix of a longer one.
- `score` is {score}, `original_size` width and height in pixels.
- `file_name` is that of the picture, if it had one. {others}
- `{INFO_FILE}` says how the tokens were made.

```python
import datasets
from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.token_datasets import TokenDecoder

codes = datasets.load_dataset(NAME, split="{shards.split}")  # this folder, or its id on the Hub
model, processor = ALITModel.from_pretrained(MODEL).eval(), ALITImageProcessor.from_pretrained(MODEL)
pictures = TokenDecoder(NAME, model, processor).decode(codes[:8])
```
"""


__all__ = ["CARD_FILE", "UNDECODABLE_FILE", "card"]
