"""
Looks for evaluation images among training images:

    python tools/check_separation.py --train "TRAIN-*.parquet" --evaluation EVAL.parquet --output separation.json

Compares the SHA-256 of the centre crops' pixels, and 64-bit hashes of the low frequencies of their grey values, which
barely change with scaling and compression. Writes and prints how close the sets are; exit code 1 if an image is in
both.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.fft import dctn

from alit_hf.data.images import open_images
from alit_hf.utils.progress import ProgressBar


SIZE = 256
# Of 64 bits. Unrelated photos differ in about half of them; a photo rescaled or recompressed differs in a few.
NEAR = 4


@dataclass(frozen=True)
class Hashes:
    """Names, SHA-256 of pixels, and bits (bool, `(N, 64)`) of low frequencies of images, in their order."""

    names: list[str]
    digests: list[str]
    bits: np.ndarray


def low_frequency_bits(picture: Image.Image) -> np.ndarray:
    """Which of the 8 x 8 lowest frequencies of a square picture's grey values are above their median, bool `(64,)`."""
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float32)
    frequencies = dctn(grey)[:8, :8].flatten()
    # The first is the overall brightness.
    return frequencies > np.median(frequencies[1:])


def hash_images(sources: list[str]) -> Hashes:
    """
    Hashes the centre squares of all images, resized to 256 x 256 pixels.

    Raises:
        `ValueError`: for sources without images, or an image that cannot be decoded.
    """
    images = open_images(sources)
    names, digests, bits = [], [], []
    for index in ProgressBar(range(len(images)), desc=Path(sources[0]).name):
        square = ImageOps.fit(images.read(index), (SIZE, SIZE), Image.Resampling.BICUBIC)
        names.append(images.name(index))
        digests.append(hashlib.sha256(square.tobytes()).hexdigest())
        bits.append(low_frequency_bits(square))
    return Hashes(names, digests, np.stack(bits))


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The number of bits in which the rows of `(N, 64)` and `(M, 64)` differ, `(N, M)`."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    return (one @ (1 - other).T + (1 - one) @ other.T).astype(np.int64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--evaluation"):
        parser.add_argument(name, nargs="+", required=True, metavar="DATA", help="as for `alit evaluate --data`")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    try:
        train, evaluation = (hash_images(sources) for sources in (arguments.train, arguments.evaluation))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    same = [name for name, digest in zip(evaluation.names, evaluation.digests, strict=True) if digest in train.digests]
    nearest = distances(evaluation.bits, train.bits)
    found = {
        "train": {"sources": [Path(source).name for source in arguments.train], "num_images": len(train.names)},
        "evaluation": {
            "sources": [Path(source).name for source in arguments.evaluation],
            "num_images": len(evaluation.names),
        },
        "same_pixels": same,
        "least_bits": int(nearest.min()),
        "median_bits": float(np.median(nearest.min(axis=1))),
        "near": [
            {
                "evaluation": evaluation.names[number],
                "train": train.names[int(nearest[number].argmin())],
                "bits": int(nearest[number].min()),
            }
            for number in np.flatnonzero(nearest.min(axis=1) <= NEAR)
        ],
    }
    text = json.dumps(found, indent=2, ensure_ascii=False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if same else 0


if __name__ == "__main__":
    sys.exit(main())
