"""
How many ids of a model's codes differ between float32 and bfloat16, and how many stay from one rollout to the next:
the numbers of docs/limits.md and docs/concepts.md.

    python tools/compare_ids.py DATA.parquet [--model MODEL] [--limit 48]
"""

import argparse
from collections.abc import Sequence

import datasets
import torch

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path


@torch.no_grad()
def ids_of_rollouts(model: ALITModel, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Ids `(B, T_k)` after each rollout."""
    return [rollout.token_ids for rollout in model.rollouts(pixel_values, return_reconstruction=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a parquet file with a column `image`")
    parser.add_argument("--model", default=pretrained_path(), help="Hub id or folder (default: the packaged model)")
    parser.add_argument("--limit", type=int, default=48, help="pictures, from the first (default: %(default)s)")
    options = parser.parse_args(arguments)

    pictures = datasets.load_dataset("parquet", data_files=options.data, split=f"train[:{options.limit}]")["image"]
    processor = ALITImageProcessor.from_pretrained(options.model)
    models = [ALITModel.from_pretrained(options.model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    ids, rounded_ids = [], []
    for picture in pictures:
        pixel_values = processor(picture, return_tensors="pt").pixel_values
        for model, found in zip(models, (ids, rounded_ids), strict=True):
            found.append(ids_of_rollouts(model, pixel_values))
    ids, rounded_ids = ([torch.cat(code) for code in zip(*found, strict=True)] for found in (ids, rounded_ids))

    print(f"{len(pictures)} pictures\ntokens  differ in bfloat16  stay in the next rollout")
    for code, rounded, following in zip(ids, rounded_ids, [*ids[1:], None], strict=True):
        differ = (code != rounded).float().mean()
        stay = "" if following is None else f"{(code == following[:, : code.shape[1]]).float().mean():.1%}"
        print(f"{code.shape[1]:6}  {differ:18.1%}  {stay:>23}")


if __name__ == "__main__":
    main()
