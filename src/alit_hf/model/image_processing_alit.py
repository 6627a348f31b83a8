"""Image processor of ALIT: pictures to pixels in [0, 1] at the model's size, and back."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_io import MAX_IMAGE_PIXELS, open_image, to_rgb, to_uint8


# Resizing a whole picture before cropping it costs at most this many times the memory of the crop; of more elongated
# pictures only the part that the crop keeps is resized.
_MAX_RESIZED_CROPS = 16

# Source pixels that Pillow's widest filter reads to either side of a target pixel, in units of the larger grid.
_FILTER_REACH = 5


class ALITImageProcessorKwargs(ImagesKwargs, total=False):
    """
    size_divisor (`int`, *optional*):
        Without `do_center_crop`, the centre of a resized picture is cut to multiples of this in height and width.
    """

    size_divisor: int | None


class ALITImageProcessor(PilBackend):
    """Turns pictures into `pixel_values` (B, 3, H, W), float32 in [0, 1], and reconstructions back into pictures.

    The shortest edge is resized to `size` (bicubic) and the centre is cropped to `crop_size`. There is no mean and
    standard deviation: ALIT and its base tokenizer work on pixels in [0, 1].

    Args:
        size (`int` or `dict`, defaults to `{"shortest_edge": 256}`):
            Length of the shortest edge after resizing, in pixels. A picture that would then be smaller than the crop
            (possible if the crop is not square) is enlarged until the crop is covered, never padded.
        crop_size (`int` or `dict`, defaults to `{"height": 256, "width": 256}`):
            Size of the output, in pixels.
        do_convert_rgb, do_resize, resample, do_center_crop, do_rescale, rescale_factor, do_normalize, image_mean,
        image_std:
            As in every image processor of transformers. Without `do_center_crop` a picture keeps its aspect ratio,
            for a model called with `interpolate_pos_encoding=True`. With `do_convert_rgb=False` all pictures must be
            RGB already.
        size_divisor (`int`, *optional*):
            The model's `patch_size`. Without `do_center_crop`, the centre of a resized picture is cut to multiples of
            it in height and width, as the model needs.

    With `do_rescale=False` pictures of floats, in [0, 1], stay so, all others stay integers in [0, 255].

    All of them can also be given to a single call, which takes, alone or in (nested) lists and mixed:

    - PIL images of any mode, by the rules of [`~image_io.to_rgb`] (EXIF orientation, transparency, 16 bit).
    - Paths (`str`, `Path`), read by [`~image_io.open_image`].
    - NumPy arrays and torch tensors: (H, W) grey, or three axes with 1, 3 or 4 (RGBA) channels. Where both the first
      and the last axis could be the channels, arrays are taken as (H, W, C) and tensors as (C, H, W);
      `input_data_format` decides otherwise. Four axes are a batch, scaled as one. Values are scaled to 8 bit by the
      rules of [`~image_io.to_uint8`]: floats in [0, 1] are as welcome as uint8; they are rounded to the nearest of
      256 levels and not rescaled twice.

    Everything becomes an 8-bit RGB picture first and is resized by Pillow, also where torchvision is installed and
    whatever the input was: torchvision resizes a little differently, and one picture should have one code.

    Raises:
        ValueError: unreadable files, arrays without a recognisable channel axis or without pixels, values without a
            known scale (NaN, negative, …), sizes that are not positive, an input that is no picture, an empty list or
            picture, a picture so elongated that resizing it without a crop exceeds `MAX_IMAGE_PIXELS`.

    Example:

    ```python
    >>> from alit_hf import ALITConfig, ALITImageProcessor

    >>> processor = ALITImageProcessor.for_config(ALITConfig(image_size=[192, 256]))
    >>> processor("photo.jpg", return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 192, 256])
    ```
    """

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 256, "width": 256}
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    size_divisor = None
    valid_kwargs = ALITImageProcessorKwargs

    @classmethod
    def for_config(cls, config: PreTrainedConfig) -> "ALITImageProcessor":
        """The processor of a model with that [`ALITConfig`]."""
        height, width = config.image_height_width
        return cls(
            size={"shortest_edge": min(height, width)},
            crop_size={"height": height, "width": width},
            size_divisor=config.patch_size,
        )

    def postprocess(self, pixel_values: torch.Tensor | np.ndarray) -> list[Image.Image]:
        """Turn pixels, such as the model's reconstructions, into pictures.

        Args:
            pixel_values (`torch.Tensor` or `np.ndarray` of shape (B, 3, H, W)):
                Of any floating dtype and device, in [0, 1]. Values outside are clamped, the rest is rounded to the
                nearest of 256 levels.

        Returns:
            `list[PIL.Image.Image]`: B images of mode "RGB", W × H pixels.

        Raises:
            ValueError: another shape, a dtype that is not floating, NaN or infinite values.
        """
        pixels = torch.as_tensor(pixel_values).detach()
        if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
            raise ValueError(f"pixel_values must have shape (B, 3, H, W), got {tuple(pixels.shape)}")
        if not pixels.is_floating_point():
            raise ValueError(f"pixel_values must be floats in [0, 1], got dtype {pixels.dtype}")
        if not torch.isfinite(pixels).all():
            raise ValueError("pixel_values must be finite, got NaN or infinity")
        levels = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        unknown = sorted(set(kwargs) - set(self._valid_kwargs_names))
        if unknown:
            raise ValueError(
                f"{unknown} are no keywords of the processor; these are: {sorted(self._valid_kwargs_names)}"
            )
        if kwargs.get("do_rescale", self.do_rescale) is False and _are_floats(images):
            # Pictures are resized as 8 bits; this gives floats back what they came with.
            kwargs.update(do_rescale=True, rescale_factor=1 / 255)
        return super().preprocess(images, *args, **kwargs)

    def process_image(
        self,
        image: ImageInput | str | Path,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Bring one picture of any accepted kind to uint8 RGB of shape (3, H, W), at its own size."""
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image)
        elif not isinstance(image, Image.Image):
            image = _array_to_pil(image, input_data_format)
        if 0 in image.size:
            raise ValueError(f"a picture of {image.width} × {image.height} pixels is empty")
        if do_convert_rgb:
            image = to_rgb(image)
        elif image.mode != "RGB":
            raise ValueError(f"do_convert_rgb=False takes RGB pictures only, got mode {image.mode}")
        return np.asarray(image).transpose(2, 0, 1)

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: PILImageResampling | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Resize (3, H, W) to `size`, refusing a result of more than `MAX_IMAGE_PIXELS`."""
        if size.shortest_edge and not size.longest_edge:
            height, width = _size_with_shortest_edge(*image.shape[-2:], size.shortest_edge)
            if height * width > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"a picture of {image.shape[-1]} × {image.shape[-2]} pixels would become {width} × {height} with "
                    f"size={dict(size)}, more than {MAX_IMAGE_PIXELS} pixels: use do_center_crop=True or a fixed size"
                )
        return super().resize(image, size, resample, **kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        pictures = _flatten(images)
        if not pictures:
            raise ValueError("images is empty")
        return pictures

    def _standardize_kwargs(self, **kwargs: Any) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        divisor = kwargs.get("size_divisor")
        if divisor is not None and divisor < 1:
            raise ValueError(f"size_divisor must be a positive whole number, got {divisor!r}")
        for name in ("size", "crop_size"):
            edges = dict(kwargs[name] or {})
            if any(not isinstance(edge, int) or edge < 1 for edge in edges.values()):
                raise ValueError(f"{name} must hold positive whole numbers of pixels, got {edges}")
            shortest = edges.get("shortest_edge", 1)
            if edges.get("height", shortest) * edges.get("width", shortest) > MAX_IMAGE_PIXELS:
                raise ValueError(f"{name} must have at most {MAX_IMAGE_PIXELS} pixels, got {edges}")
        return kwargs

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_center_crop: bool,
        crop_size: SizeDict,
        size_divisor: int | None = None,
        **kwargs: Any,
    ):
        if do_resize and do_center_crop and size.shortest_edge and not size.longest_edge:
            images = [self._resize_and_crop(image, size.shortest_edge, crop_size, resample) for image in images]
            do_resize = do_center_crop = False
        elif size_divisor and not do_center_crop:
            if do_resize:
                images, do_resize = [self.resize(image, size, resample) for image in images], False
            images = [self._cut_to_multiples(image, size_divisor) for image in images]
        return super()._preprocess(
            images,
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_center_crop=do_center_crop,
            crop_size=crop_size,
            **kwargs,
        )

    def _cut_to_multiples(self, image: np.ndarray, divisor: int) -> np.ndarray:
        height, width = (max(1, side // divisor) * divisor for side in image.shape[-2:])
        return self.center_crop(image, SizeDict(height=height, width=width))

    def _resize_and_crop(
        self, image: np.ndarray, shortest_edge: int, crop_size: SizeDict, resample: PILImageResampling
    ) -> np.ndarray:
        crop_height, crop_width = crop_size.height, crop_size.width
        height, width = _covering_size(*image.shape[-2:], shortest_edge, crop_height, crop_width)
        if height * width <= _MAX_RESIZED_CROPS * crop_height * crop_width:
            image = self.resize(image, SizeDict(height=height, width=width), resample)
            return self.center_crop(image, crop_size)

        # The same pixels without the rest of the resized picture. Pillow keeps the box in single precision, so the
        # surroundings of the part are cut off first; at most one level of 255 differs, in few pixels.
        rows, top, bottom = _source_span(image.shape[-2], height, crop_height)
        columns, left, right = _source_span(image.shape[-1], width, crop_width)
        part = Image.fromarray(np.ascontiguousarray(image[:, rows, columns].transpose(1, 2, 0)))
        part = part.resize((crop_width, crop_height), resample, box=(left, top, right, bottom))
        return np.asarray(part).transpose(2, 0, 1)


def _flatten(images: Any) -> list:
    """Pictures out of nested lists and batched arrays."""
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in _flatten(item)]
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return _unbatch(images) if images.ndim == 4 else [images]
    raise ValueError(
        f"images must be PIL images, NumPy arrays, torch tensors, paths or lists of them, got {type(images).__name__}"
    )


def _are_floats(images: Any) -> bool:
    """
    Whether pictures are floats in [0, 1], for which there is nothing to rescale.

    Raises:
        ValueError: floats outside of [0, 1]; some pictures with floats and some with integers.
    """
    if isinstance(images, (list, tuple)):
        kinds = {_are_floats(picture) for picture in images}
        if len(kinds) == 2:
            raise ValueError("do_rescale=False takes pictures of floats or of integers, got both")
        return True in kinds
    if not isinstance(images, (np.ndarray, torch.Tensor)):
        return False
    values = _to_numpy(images)
    if values.dtype.kind != "f" or not values.size:
        return False
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"do_rescale=False takes floats in [0, 1], got values from {values.min():g} to {values.max():g}"
        )
    return True


def _unbatch(images: np.ndarray | torch.Tensor) -> list:
    # Scaled as a whole: alone, an almost black picture of a float batch in [0, 255] would pass as one in [0, 1].
    levels = to_uint8(_to_numpy(images))
    return list(torch.from_numpy(levels) if isinstance(images, torch.Tensor) else levels)


def _to_numpy(pixels: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(pixels, np.ndarray):
        return pixels
    pixels = pixels.detach().cpu()
    return (pixels.float() if pixels.is_floating_point() else pixels).numpy()  # NumPy has no bfloat16


def _array_to_pil(pixels: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None) -> Image.Image:
    shape = tuple(pixels.shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"arrays must have two axes, three, or four as a batch, got shape {shape}")
    levels = to_uint8(_to_numpy(pixels))
    if len(shape) == 3:
        channel_axes = {ChannelDimension.FIRST: 0, ChannelDimension.LAST: 2}
        if input_data_format is not None:
            candidates = [channel_axes[ChannelDimension(input_data_format)]]
        else:
            candidates = [0, 2] if isinstance(pixels, torch.Tensor) else [2, 0]
        axis = next((axis for axis in candidates if shape[axis] in (1, 3, 4)), None)
        if axis is None:
            raise ValueError(f"an array of shape {shape} has no channel axis of 1, 3 or 4 where one is expected")
        levels = np.moveaxis(levels, axis, -1)
        if shape[axis] == 1:
            levels = levels[..., 0]
    return Image.fromarray(np.ascontiguousarray(levels))


def _size_with_shortest_edge(height: int, width: int, shortest_edge: int) -> tuple[int, int]:
    """The (height, width) that transformers and torchvision resize to."""
    if width <= height:
        return shortest_edge * height // width, shortest_edge
    return shortest_edge, shortest_edge * width // height


def _covering_size(height: int, width: int, shortest_edge: int, crop_height: int, crop_width: int) -> tuple[int, int]:
    """The (height, width) to resize to, so that the shortest edge is as asked or, if that is more, the crop fits."""
    new_height, new_width = _size_with_shortest_edge(height, width, shortest_edge)
    if new_height >= crop_height and new_width >= crop_width:
        return new_height, new_width
    if crop_height * width >= crop_width * height:
        return crop_height, crop_height * width // height
    return crop_width * height // width, crop_width


def _source_span(length: int, new_length: int, crop: int) -> tuple[slice, float, float]:
    """Where, along one axis of `length` pixels, the centre `crop` of its `new_length` resized pixels comes from.

    Returns the source pixels that the resampling filter reads, and the start and end of the crop within them.
    """
    scale = length / new_length
    start = (new_length - crop) // 2 * scale
    end = start + crop * scale
    reach = math.ceil(_FILTER_REACH * max(scale, 1))
    first, last = max(0, math.floor(start) - reach), min(length, math.ceil(end) + reach)
    return slice(first, last), start - first, min(end, last) - first


# save_pretrained then copies this file and those it imports, so that a pushed model runs where alit_hf is missing.
ALITImageProcessor.register_for_auto_class()

__all__ = ["ALITImageProcessor"]
