"""The model as the demo uses it: from a picture to everything the page shows, from an `.alit` file to its picture."""

import math
import threading

import torch
from PIL import Image

from alit_hf.analysis.attention_maps import AttentionSource, recorded_maps
from alit_hf.codes.rollout_pictures import payload_bytes, rollout_pictures
from alit_hf.codes.token_file import TokenFile, model_fingerprint
from alit_hf.model.checks import check_confidence
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel

from .codes import DecodedFile, EncodedPicture


# With which lengths are predicted.
_CONFIDENCE = 0.9

# Larger grids, relative to the trained one, are refused: everyone else waits while they are decoded.
_LARGEST_GRID = 4


class DemoTokenizer:
    """
    Args:
        model ([`ALITModel`]): in evaluation mode; it is switched to eager attention, which has weights to show.
        processor ([`ALITImageProcessor`]): the model's.

    Raises:
        `ValueError`: for a model whose grid has only one position, as there is nothing to show.
    """

    def __init__(self, model: ALITModel, processor: ALITImageProcessor):
        # The decoder's attention says what a token is for, and the last layer is the closest to the picture.
        self._source = AttentionSource("decoder", model.config.num_decoder_layers - 1)
        self._source.check(model.config)
        model.set_attn_implementation("eager")
        self.model = model
        self.processor = processor
        self._fingerprint = model_fingerprint(model)
        self.confidence: float | None = _CONFIDENCE
        """With which lengths can be predicted; `None` where the model has no length predictor for L1."""
        try:
            check_confidence(model.config, _CONFIDENCE, 0.0, "l1")
        except ValueError:
            self.confidence = None
        # The recording covers whatever runs through the layer, so two pictures at a time would mix.
        self._lock = threading.Lock()

    def encode(self, name: str, image: Image.Image) -> EncodedPicture:
        """
        Runs all rollouts of a picture once.

        Args:
            name (`str`): name of its file.
            image (`PIL.Image.Image`): of any size and mode.
        """
        pixel_values = self.processor(image, return_tensors="pt").pixel_values
        with self._lock, recorded_maps(self.model, self._source) as maps:
            rollouts = rollout_pictures(self.model, self.processor, pixel_values, self.confidence)
        return EncodedPicture(
            name=name,
            original=self.processor.postprocess(pixel_values)[0],
            rollouts=rollouts,
            maps=[after_rollout[0].cpu().numpy() for after_rollout in maps],
            token_files=[self._token_file(rollout.token_ids, image.size) for rollout in rollouts],
        )

    @torch.inference_mode()
    def decode(self, name: str, token_file: TokenFile) -> DecodedFile:
        """
        Args:
            name (`str`): name of the file.
            token_file (`TokenFile`): its contents.

        Raises:
            `ValueError`: if another model made the file, or for a number of tokens or a grid that the model does not
                decode or that has more than 4 times the trained positions.
        """
        if not self.model.config.quantize:
            raise ValueError("this model's latent tokens are continuous, it reads no .alit files")
        token_file.check_model(self._fingerprint)
        token_file.check_sizes(self.model)
        most = _LARGEST_GRID * math.prod(self.model.config.grid_size)
        if math.prod(token_file.grid_size) > most:
            rows, columns = token_file.grid_size
            raise ValueError(f"its grid has {rows} x {columns} positions, here it may have at most {most}")
        token_ids = torch.tensor(token_file.token_ids).unsqueeze(0).to(self.model.device)
        grid_size = token_file.grid_size
        with self._lock, recorded_maps(self.model, self._source, grid_size) as maps:
            pixel_values = self.model.decode(token_ids=token_ids, grid_size=grid_size).pixel_values
        return DecodedFile(
            name=name,
            picture=self.processor.postprocess(pixel_values)[0],
            maps=maps[0][0].cpu().numpy(),
            payload_bytes=payload_bytes(self.model.config, token_file.num_tokens),
            token_file=token_file,
        )

    def _token_file(self, token_ids: torch.LongTensor | None, original_size: tuple[int, int]) -> TokenFile | None:
        if token_ids is None:
            return None
        config = self.model.config
        return TokenFile(
            token_ids=token_ids,
            original_size=original_size,
            grid_size=config.grid_size,
            codebook_size=config.codebook_size,
            fingerprint=self._fingerprint,
        )


__all__ = ["DemoTokenizer"]
