"""Figures of pictures at every length."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .rollout_pictures import RolloutPicture


# Inches. A picture of 256 pixels is drawn at 256 pixels, and a row of nine, shown 1,280 pixels wide on a page, has
# letters of 11 pixels.
_PANEL_WIDTH = 2.0
_GAP = 0.16  # leaves room for a frame on both sides
_TITLE_HEIGHT = 0.36
_LINE_HEIGHT = 0.27
_MARGIN = 0.12
_LETTER_WIDTH = 0.1
_DOTS_PER_INCH = 128

# Points, of which 72 are an inch.
_FONT_SIZE = 12.5
_FRAME_WIDTH = 4.5

_FRAME_COLOR = "#d1242f"
_TITLE_LETTERS = 18


@dataclass(frozen=True)
class Panel:
    """
    A picture with text.

    Args:
        picture (`PIL.Image.Image`): of any size.
        title (`str`): text above it.
        lines (`Sequence[str]`): text below it.
        is_picked (`bool`): whether it is framed.
    """

    picture: Image.Image
    title: str
    lines: Sequence[str] = ()
    is_picked: bool = False


def rollout_panels(
    name: str, original: Image.Image, rollouts: Sequence[RolloutPicture], picked: RolloutPicture | None
) -> list[Panel]:
    """
    The original and the picture after each rollout, with error and bytes below.

    Args:
        name (`str`): title of the original; cut if it is long.
        original (`PIL.Image.Image`): the picture as the model saw it.
        rollouts (`Sequence[RolloutPicture]`): the picture at the lengths to show.
        picked (`RolloutPicture`, *optional*): the one of them to frame.
    """
    title = name if len(name) <= _TITLE_LETTERS else f"{name[: _TITLE_LETTERS - 1]}…"
    panels = [Panel(original, title, ["original", f"{original.width} × {original.height} px"])]
    for rollout in rollouts:
        lines = [f"L1 {rollout.l1:.3f} · {rollout.psnr:.1f} dB"]
        if rollout.payload_bytes is not None:
            lines.append(f"{rollout.payload_bytes} bytes")
        panels.append(Panel(rollout.picture, f"{rollout.num_tokens} tokens", lines, rollout is picked))
    return panels


def frame_caption(threshold: float) -> str:
    """Explains the frame around the picture that `pick_rollout` picked."""
    return f"Framed: the fewest tokens with an L1 below {threshold:g}, or all of them where no length is below."


def draw_panels(rows: Sequence[Sequence[Panel]], caption: str) -> Figure:
    """
    Draws rows of panels with a caption below.

    Args:
        rows (`Sequence[Sequence[Panel]]`): each of any length; all pictures are drawn at the size of the first.
        caption (`str`): says what is shown, or what the frame means.
    """
    first = rows[0][0].picture
    panel_height = _PANEL_WIDTH * first.height / first.width
    num_lines = max(len(panel.lines) for row in rows for panel in row)
    row_height = _TITLE_HEIGHT + panel_height + num_lines * _LINE_HEIGHT + 2 * _GAP
    width = 2 * _MARGIN + max(map(len, rows)) * (_PANEL_WIDTH + _GAP) - _GAP
    caption_lines = textwrap.wrap(caption, int((width - 2 * _MARGIN) / _LETTER_WIDTH))
    height = 2 * _MARGIN + len(rows) * row_height + len(caption_lines) * _LINE_HEIGHT
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white")

    def write(x, y, text, **kwargs):
        # A file name may contain a dollar sign, which would begin a formula.
        figure.text(x / width, y / height, text, va="center", size=_FONT_SIZE, parse_math=False, **kwargs)

    for row_index, row in enumerate(rows):
        top = height - _MARGIN - row_index * row_height
        for column, panel in enumerate(row):
            left = _MARGIN + column * (_PANEL_WIDTH + _GAP)
            bottom = top - _TITLE_HEIGHT - panel_height
            axes = figure.add_axes((left / width, bottom / height, _PANEL_WIDTH / width, panel_height / height))
            axes.imshow(panel.picture, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
            color = "black"
            if panel.is_picked:
                color = _FRAME_COLOR
                # Around the picture, in the gap between the panels.
                offset = _FRAME_WIDTH / 72 / 2
                corner = ((left - offset) / width, (bottom - offset) / height)
                sides = ((_PANEL_WIDTH + 2 * offset) / width, (panel_height + 2 * offset) / height)
                figure.add_artist(Rectangle(corner, *sides, fill=False, edgecolor=color, linewidth=_FRAME_WIDTH))
            center = left + _PANEL_WIDTH / 2
            write(center, top - _TITLE_HEIGHT / 2, panel.title, ha="center", weight="bold", color=color)
            for line_index, line in enumerate(panel.lines):
                y = bottom - _FRAME_WIDTH / 72 - (line_index + 0.5) * _LINE_HEIGHT
                write(center, y, line, ha="center", color=color)
    for lines_below, line in enumerate(reversed(caption_lines)):
        write(_MARGIN, _MARGIN + (lines_below + 0.5) * _LINE_HEIGHT, line, ha="left", color=_FRAME_COLOR)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike, dots_per_inch: int | None = None) -> None:
    """
    Writes a figure in the format given by the path's suffix. The same figure gives the same file.

    Args:
        figure (`Figure`)
        path (`str` or `os.PathLike`)
        dots_per_inch (`int`, *optional*): for raster formats. Defaults to the figure's own.

    Raises:
        `OSError`: if it cannot be written.
        `ValueError`: for a suffix that matplotlib does not know.
    """
    extension = os.path.splitext(path)[1].lower()
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with rc_context({"svg.hashsalt": "alit"}):
        figure.savefig(path, dpi=dots_per_inch or "figure", metadata=dates.get(extension))


__all__ = ["Panel", "draw_panels", "frame_caption", "rollout_panels", "save_figure"]
