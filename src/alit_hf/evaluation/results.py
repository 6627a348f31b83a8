"""The numbers that `alit evaluate` writes, from the records of a pass."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from alit_hf.data.images import Images
from alit_hf.losses.codebook import codebook_usage, perplexity
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.public_names import public_name

from .description import describe_crop, describe_device, describe_model, describe_versions
from .frechet import result_name
from .lengths import code_lengths, smallest_satisfying
from .rounding import rounded
from .scores import MAX_PSNR
from .settings import EvaluationSettings
from .tally import ImageRecord
from .yardsticks import BYTES_PER_PIXEL, CODECS


_NUM_WORST = 12
_LIBRARIES = ("torch", "transformers", "diffusers", "torchmetrics", "numpy", "pillow")


def build_results(
    *,
    model: ALITModel,
    processor: ALITImageProcessor,
    images: Images,
    settings: EvaluationSettings,
    num_processes: int,
    records: Sequence[ImageRecord],
    undecodable: list[dict],
    code_counts: Mapping[str, torch.Tensor],
    frechet: dict[str, float],
    speed: dict,
    thumbnail_sizes: dict[int, tuple[int, int]],
) -> dict:
    """
    Builds the results.

    Args:
        records: of all images, by index.
        undecodable: `{"index", "image", "reason"}` of those that could not be read.
        code_counts: how often each code occurs, for each variant that has codes.
        frechet: the Fréchet distance of each variant; empty if not measured.
        speed: from `measure_speed`.
        thumbnail_sizes: width and height for each length.

    Returns:
        - `model`, `data`, `settings`: what was measured, on what and how.
        - `lengths`: for each length (`"32"`, …) `bytes` and `bits` (of the packed ids), `l1`, `psnr`, `ssim`,
          `lpips_alex`, `lpips_vgg`, the Fréchet distance, `codebook_usage`, `codebook_perplexity` and images per
          second.
        - `base`: the same of the base tokenizer alone.
        - `adaptive`: for each `threshold` the same, with `mean_tokens`, `satisfied` (share of images below it) and
          `satisfied_by_length`, the share below it if all images get that length.
        - `thumbnail` (for each length, of at most its bytes), and `jpeg`, `webp` and `avif` at their smallest: the
          same scores and mean `bytes`; `None` for a format that this Pillow cannot write.
        - `fitting`: the same, without the Fréchet distance, of what `fitting_files` gives for each of these formats
          and each length whose bytes suffice for a file of every picture.
        - `worst`: the images that the longest code renders worst.

        Values that do not exist (such as bytes of continuous latents) are `None`; scores are rounded to 6 decimals.
    """
    config = model.config
    lengths = code_lengths(config)
    frechet_name = None if settings.feature_network is None else result_name(settings.feature_network)

    def means(variants: Sequence[str]) -> dict[str, float]:
        """Mean scores, with each image in the variant given for it."""
        chosen = [record.scores[variant] for record, variant in zip(records, variants, strict=True)]
        return {name: rounded(np.mean([scores[name] for scores in chosen])) for name in chosen[0]}

    def frechet_of(variant: str) -> dict[str, float]:
        return {} if frechet_name is None else {frechet_name: rounded(frechet[variant])}

    def one(variant: str) -> dict[str, float]:
        return means([variant] * len(records)) | frechet_of(variant)

    def file(variant: str) -> dict[str, float]:
        num_bytes = rounded(np.mean([record.file_bytes[variant] for record in records]))
        return {"bytes": num_bytes} | means([variant] * len(records))

    def codebook(variant: str) -> dict[str, float | None]:
        counts = code_counts.get(variant)
        return {
            "codebook_usage": None if counts is None else rounded(codebook_usage(counts)),
            "codebook_perplexity": None if counts is None else rounded(perplexity(counts)),
        }

    def size(num_tokens: float) -> dict[str, float | None]:
        bits = num_tokens * config.bits_per_token if config.quantize else None
        return {"bits": bits, "bytes": None if bits is None else bits / 8}

    criterion = np.array([record.criterion for record in records], dtype=np.float32)
    adaptive = []
    for number, threshold in enumerate(settings.thresholds):
        chosen, satisfied = smallest_satisfying(criterion, threshold)
        is_below = criterion < np.float32(threshold)
        mean_tokens = float(np.mean([lengths[index] for index in chosen]))
        adaptive.append(
            {
                "threshold": threshold,
                "mean_tokens": rounded(mean_tokens),
                "satisfied": rounded(satisfied.mean()),
                "satisfied_by_length": {
                    str(length): rounded(share) for length, share in zip(lengths, is_below.mean(axis=0), strict=True)
                },
                "images_by_length": {
                    str(length): int((chosen == index).sum()) for index, length in enumerate(lengths)
                },
                **size(mean_tokens),
                **means([f"lengths/{lengths[index]}" for index in chosen]),
                **frechet_of(f"adaptive/{number}"),
                **codebook(f"adaptive/{number}"),
                **speed["adaptive"][number],
            }
        )

    base_bits = None
    if config.base_type == "vqgan":
        base_bits = config.num_positions * math.ceil(math.log2(config.base_output_dim))
    return {
        "model": describe_model(model),
        "data": {
            "sources": [public_name(source) for source in images.sources],
            "config_name": images.config_name,
            "split": images.split,
            "num_images": len(records),
            "undecodable": undecodable,
            "damage": images.damage,
            "crop": describe_crop(model, processor),
            # Of the crops themselves, so that the same reference images are recognised in any kind of file.
            "pixels_sha256": hashlib.sha256(b"".join(record.digest for record in records)).hexdigest(),
        },
        "settings": {
            "clamped": True,
            "criterion": "l1 of the pictures before clamping, as `ALITModel.encode` computes it",
            "max_psnr": MAX_PSNR,
            "bytes": "of the packed ids, without a file's header",
            "frechet": _describe_frechet(settings, len(records)),
            "speed": f"one batch of {speed['num_images']} on one process",
            "batch_size": settings.batch_size,
            "limit": settings.limit,
            "processes": num_processes,
            "device": describe_device(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": describe_versions(*_LIBRARIES),
        },
        "lengths": {
            str(length): {
                **size(length),
                **one(f"lengths/{length}"),
                **codebook(f"lengths/{length}"),
                **speed["lengths"][str(length)],
            }
            for length in lengths
        },
        "base": {
            "bits": base_bits,
            "bytes": None if base_bits is None else base_bits / 8,
            **one("base"),
            **codebook("base"),
            **speed["base"],
        },
        "adaptive": adaptive,
        "thumbnail": {
            str(length): {"width": size[0], "height": size[1], "bytes": BYTES_PER_PIXEL * size[0] * size[1]}
            | one(f"thumbnail/{length}")
            for length, size in thumbnail_sizes.items()
        },
        **{name: file(name) | frechet_of(name) if name in records[0].scores else None for name in CODECS},
        "fitting": {
            name: {
                str(length): file(f"{name}/{length}")
                for length in lengths
                if all(f"{name}/{length}" in record.scores for record in records)
            }
            for name in CODECS
        },
        "worst": _worst(records, f"lengths/{lengths[-1]}", images),
    }


def _worst(records: Sequence[ImageRecord], variant: str, images: Images) -> list[dict]:
    measure = "lpips_alex" if "lpips_alex" in records[0].scores[variant] else "l1"
    worst = sorted(records, key=lambda record: (-record.scores[variant][measure], record.index))[:_NUM_WORST]
    return [
        {"index": record.index, "image": images.name(record.index)}
        | {name: rounded(value) for name, value in record.scores[variant].items()}
        for record in worst
    ]


def _describe_frechet(settings: EvaluationSettings, num_images: int) -> dict | None:
    network = settings.feature_network
    if network is None:
        return None
    return {
        "network": network.name,
        "num_features": network.num_features,
        "num_images": num_images,
        "reference": "the same images, cropped as `data` says",
    }


__all__ = ["build_results"]
