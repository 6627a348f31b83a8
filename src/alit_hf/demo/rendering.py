"""The demo's pictures and numbers as HTML. Everything is inline (pictures as PNG), so that no files are written.

The classes are those of `style.css`.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageOps

from alit_hf.analysis.attention_figure import MAP_COLORS, MAP_OPACITY
from alit_hf.codes.rollout_pictures import RolloutPicture
from alit_hf.codes.token_file import TokenFile

from .codes import ChosenCode, DecodedFile, Kept


# Pixels, twice as many as on the page.
_THUMBNAIL = (192, 192)


def chosen_html(kept: Kept, chosen: ChosenCode, token: int | None) -> str:
    """
    The original, the chosen code's picture and a token's attention side by side, and the code to download.

    Args:
        kept (`Kept`): the session's picture.
        chosen (`ChosenCode`): from `kept.choose`.
        token (`int`, *optional*): index, from 0, of the token whose attention is shown.
    """
    figures = (_original(kept), _reconstruction(chosen), _attention(chosen, token))
    return _grid("chosen", figures) + _download(kept.name, chosen)


def strip_html(kept: Kept) -> str:
    """The picture at every length, with error and bytes below."""
    if isinstance(kept, DecodedFile):
        return _note("An .alit file holds one code. Drop in the picture itself to see it at every length.")
    return _grid(
        "strip",
        (
            _figure(rollout.picture, f"{rollout.num_tokens} tokens", *_errors(rollout), _bytes(rollout.payload_bytes))
            for rollout in kept.rollouts
        ),
    )


def tokens_html(chosen: ChosenCode) -> str:
    """A button for each token, with its number in `data-token`, from 0."""
    buttons = []
    for token in range(chosen.num_tokens):
        words = _token_words(chosen.token_file, token)
        buttons.append(
            f'<button type="button" class="alit-token" data-token="{token}" title="{words}" aria-label="{words}">'
            f"{token + 1}</button>"
        )
    return _note("The tokens of this code. Click one to see where in the picture it is read.") + _grid(
        "tokens", buttons
    )


def examples_html(pictures: dict[str, Image.Image]) -> str:
    """A button for each picture, with its name in `data-example`."""
    return _grid(
        "examples",
        (
            f'<button type="button" class="alit-example" data-example="{_text(name)}">'
            f"{_image(ImageOps.fit(picture, _THUMBNAIL), name)}<span>{_text(name)}</span></button>"
            for name, picture in pictures.items()
        ),
    )


def message_html(message: str) -> str:
    """A message that says what went wrong."""
    return f'<p class="alit-message" role="alert">{_text(message)}</p>'


def _grid(kind: str, items: Iterable[str]) -> str:
    return f'<div class="alit-{kind}">{"".join(items)}</div>'


def _original(kept: Kept) -> str:
    if isinstance(kept, DecodedFile):
        width, height = kept.token_file.original_size
        return _empty(kept.name, f"The original, of {width} × {height} pixels, is not in the file.")
    return _figure(kept.original, kept.name, "as the model sees it", f"{kept.original.width} × {kept.original.height}")


def _reconstruction(chosen: ChosenCode) -> str:
    lines = []
    if chosen.rollout is not None:
        lines += _errors(chosen.rollout)
        if not chosen.is_satisfied:
            lines.append("no length is below the threshold")
    lines.append(_bytes(chosen.payload_bytes))
    return _figure(chosen.picture, f"{chosen.num_tokens} tokens", *lines)


def _attention(chosen: ChosenCode, token: int | None) -> str:
    if token is None:
        return _empty("Attention", "Click a token below.")
    picture = attention_overlay(chosen.picture, chosen.maps[token])
    return _figure(picture, _token_words(chosen.token_file, token), "bright: where in the picture it is read")


def _download(name: str, chosen: ChosenCode) -> str:
    if chosen.token_file is None:
        return _note("This model's latent tokens are continuous: there is no .alit file to download.")
    content = chosen.token_file.to_bytes()
    file_name = f"{PurePath(name).stem}-{chosen.num_tokens}.alit"
    data = base64.b64encode(content).decode()
    return (
        f'<a class="alit-download" download="{_text(file_name)}" href="data:application/octet-stream;base64,{data}">'
        f"Download .alit ({len(content)} bytes)</a>"
    )


def _figure(picture: Image.Image, title: str, *lines: str) -> str:
    return f"<figure>{_image(picture, title)}{_caption(title, lines)}</figure>"


def _empty(title: str, words: str) -> str:
    return f'<figure><div class="alit-empty">{_text(words)}</div>{_caption(title, ())}</figure>'


def _caption(title: str, lines: Sequence[str]) -> str:
    return f"<figcaption><b>{_text(title)}</b>{''.join(f'<span>{_text(line)}</span>' for line in lines)}</figcaption>"


def _note(words: str) -> str:
    return f'<p class="alit-note">{_text(words)}</p>'


def _errors(rollout: RolloutPicture) -> list[str]:
    return [f"L1 {rollout.l1:.3f}", f"{rollout.psnr:.1f} dB"]


def _bytes(count: int | None) -> str:
    return "no bytes: continuous" if count is None else f"{count} bytes"


def _token_words(token_file: TokenFile | None, token: int) -> str:
    words = f"Token {token + 1}"
    return words if token_file is None else f"{words}, code {token_file.token_ids[token]}"


def _image(picture: Image.Image, words: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="{_text(words)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _text(words: str) -> str:
    # File names come from users. Braces and dollars begin the page's templates.
    escaped = escape(words)
    return escaped.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def attention_overlay(picture: Image.Image, attention_map: np.ndarray) -> Image.Image:
    """
    Args:
        picture (`PIL.Image.Image`): drawn in grey.
        attention_map (`np.ndarray` of shape `(rows, columns)`): not negative; its largest value is drawn brightest.

    Returns:
        `PIL.Image.Image`: of the picture's size.
    """
    brightness = Image.fromarray((attention_map / attention_map.max()).astype(np.float32))
    smooth = np.asarray(brightness.resize(picture.size, Image.Resampling.BILINEAR))
    colors = Image.fromarray(colormaps[MAP_COLORS](smooth, bytes=True)[..., :3])
    return Image.blend(picture.convert("L").convert("RGB"), colors, MAP_OPACITY)


__all__ = ["attention_overlay", "chosen_html", "examples_html", "message_html", "strip_html", "tokens_html"]
