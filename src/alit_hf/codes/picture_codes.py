"""Batches of pictures to codes that can be stored, and back."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from alit_hf.model.checks import check_confidence, check_num_tokens, check_threshold
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.model.selection import good_side, resolve_criterion

from .length_choice import LengthChoice
from .token_file import TokenFile, model_fingerprint


class Picture(NamedTuple):
    """A picture to encode: pixels `(3, H, W)` in [0, 1] at the model's size, and its original width and height."""

    pixel_values: torch.Tensor
    original_size: tuple[int, int]


def to_picture(image: Image.Image, processor: ALITImageProcessor) -> Picture:
    """Turns an upright picture into a [`Picture`]."""
    return Picture(processor(image, return_tensors="pt").pixel_values[0], image.size)


class PictureCode(NamedTuple):
    """
    A picture's code. If a threshold chose its length: the criterion's value, or the bound on it for a confidence.
    """

    tokens: TokenFile
    score: float | None
    satisfied: bool | None


class PictureEncoder:
    """
    Encodes with one model and one choice of lengths. A picture gets the same code in any batch.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        choice ([`LengthChoice`])

    Raises:
        `ValueError`: for a model with continuous latent tokens, which has no ids, a length that the model does not
            have, an unknown criterion, a threshold that makes no sense for it, or a confidence that the model's length
            predictor cannot promise.
        `OSError`: if the criterion's network is missing.
    """

    def __init__(self, model: ALITModel, choice: LengthChoice):
        config = model.config
        if not config.quantize:
            raise ValueError("the model has continuous latent tokens, only ids of discrete ones can be stored")
        check_num_tokens(config, choice.num_tokens)
        self.model = model
        self.choice = choice
        self.criterion = resolve_criterion(choice.criterion)
        check_threshold(choice.threshold, self.criterion)
        check_confidence(config, choice.confidence, choice.threshold, choice.criterion)
        self.fingerprint = model_fingerprint(model)

    @property
    def shortfall(self) -> str:
        """What is true of a score that does not meet the threshold, for messages."""
        return f"not {good_side(self.criterion)} the threshold"

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Picture]) -> list[PictureCode]:
        """The code of each picture, computed in one batch."""
        model, choice = self.model, self.choice
        pixel_values = torch.stack([picture.pixel_values for picture in pictures]).to(model.device)
        # Only a model with dynamic halting draws random numbers; the same pictures must give the same codes.
        generator = torch.Generator(model.device).manual_seed(0)
        code = model.encode(
            pixel_values,
            num_tokens=choice.num_tokens,
            threshold=choice.threshold,
            criterion=self.criterion if choice.confidence is None else choice.criterion,
            confidence=choice.confidence,
            generator=generator,
        )
        codes = []
        for row, (picture, length) in enumerate(zip(pictures, code.num_tokens.tolist(), strict=True)):
            tokens = TokenFile(
                token_ids=code.token_ids[row, :length],
                original_size=picture.original_size,
                grid_size=code.grid_size,
                codebook_size=model.config.codebook_size,
                fingerprint=self.fingerprint,
            )
            chosen = (None, None) if code.score is None else (code.score[row].item(), code.satisfied[row].item())
            codes.append(PictureCode(tokens, *chosen))
        return codes


@torch.inference_mode()
def decode_pictures(model: ALITModel, processor: ALITImageProcessor, codes: Sequence[TokenFile]) -> list[Image.Image]:
    """
    Decodes codes to pictures of the model's size, in one batch per grid size. Whether the model made the codes is not
    checked, see [`TokenFile.check_model`].
    """
    pictures: dict[int, Image.Image] = {}
    for grid_size in {tokens.grid_size for tokens in codes}:
        rows = [row for row, tokens in enumerate(codes) if tokens.grid_size == grid_size]
        token_ids = pad_sequence(
            [torch.tensor(codes[row].token_ids) for row in rows], batch_first=True, padding_value=-1
        )
        pixel_values = model.decode(token_ids=token_ids.to(model.device), grid_size=grid_size).pixel_values
        pictures.update(zip(rows, processor.postprocess(pixel_values), strict=True))
    return [pictures[row] for row in range(len(codes))]


__all__ = ["Picture", "PictureCode", "PictureEncoder", "decode_pictures", "to_picture"]
