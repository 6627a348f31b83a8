"""
How many pictures get another code in a batch than alone, at thresholds that are their own scores, and pictures per
second: the promise of docs/limits.md that a code does not depend on batch mates.

    python tools/compare_batches.py DATA.parquet… [--model MODEL] [--limit 2000] [--criterion l1] [--device cpu]
"""

import argparse
import time
from collections.abc import Sequence

import datasets
import torch
import torch.nn.functional as F

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.model.selection import resolve_criterion, score_images


BATCH_SIZES = (1, 2, 7, 16)


def own_thresholds(model: ALITModel, pixel_values: torch.Tensor, criterion: str, seed: int) -> torch.Tensor:
    """
    For each image its own score at a length drawn at random, or the next number below or above: a change of the
    score's last digit gives the image another length.
    """
    measure = resolve_criterion(criterion)
    generator = torch.Generator().manual_seed(seed)
    thresholds = []
    for image in pixel_values.split(1):
        scores = torch.cat([score_images(measure, step.reconstruction, image) for step in model.rollouts(image)])
        score = scores[torch.randint(len(scores), (1,), generator=generator)]
        shift = torch.randint(-1, 2, (1,), generator=generator).to(score.device)
        thresholds.append(torch.nextafter(score, score + shift))
    return torch.cat(thresholds)


def codes_in_batches(
    model: ALITModel, pixel_values: torch.Tensor, thresholds: torch.Tensor, criterion: str, batch_size: int
) -> torch.Tensor:
    """Ids `(N, max_tokens)`, padded with -1."""
    codes = []
    for batch, own in zip(pixel_values.split(batch_size), thresholds.split(batch_size), strict=True):
        token_ids = model.encode(batch, threshold=own, criterion=criterion).token_ids
        codes.append(F.pad(token_ids, (0, model.config.max_tokens - token_ids.shape[1]), value=-1))
    return torch.cat(codes)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="parquet files with a column `image`")
    parser.add_argument("--model", default=pretrained_path(), help="Hub id or folder (default: the packaged model)")
    parser.add_argument("--limit", type=int, default=2000, help="pictures, from the first (default: %(default)s)")
    parser.add_argument("--criterion", default="l1", help="token selection criterion (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(arguments)

    rows = datasets.load_dataset("parquet", data_files=options.data, split="train", streaming=True)
    processor = ALITImageProcessor.from_pretrained(options.model)
    model = ALITModel.from_pretrained(options.model).eval().to(options.device)
    pixel_values = torch.cat(
        [processor(row["image"], return_tensors="pt").pixel_values for row in rows.take(options.limit)]
    ).to(options.device)
    thresholds = own_thresholds(model, pixel_values, options.criterion, seed=0)

    print(f"{len(pixel_values)} pictures, {options.criterion}\nbatch  other codes  other lengths  pictures/s")
    alone = None
    for batch_size in BATCH_SIZES:
        start = time.process_time()
        codes = codes_in_batches(model, pixel_values, thresholds, options.criterion, batch_size)
        rate = len(codes) / (time.process_time() - start)
        alone = codes if alone is None else alone
        other_codes = (codes != alone).any(dim=1).sum()
        other_lengths = ((codes >= 0).sum(dim=1) != (alone >= 0).sum(dim=1)).sum()
        print(f"{batch_size:5}  {other_codes:11}  {other_lengths:13}  {rate:10.1f}", flush=True)


if __name__ == "__main__":
    main()
