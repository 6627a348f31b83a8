"""Figures in which nothing covers anything else and the frame is around the right picture."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from alit_hf.codes.figure import Panel, draw_panels, frame_caption, rollout_panels, save_figure
from alit_hf.codes.rollout_pictures import RolloutPicture


NUM_ROLLOUTS = 8


def rollouts(size=(256, 256)) -> list[RolloutPicture]:
    return [
        RolloutPicture(32 * k, None, Image.new("RGB", size, (20 * k, 0, 0)), 1.125 / k, 10.0 + k, 48 * k)
        for k in range(1, NUM_ROLLOUTS + 1)
    ]


def panels(picked: int, name: str = "photo", size=(256, 256)) -> list[Panel]:
    pictures = rollouts(size)
    return rollout_panels(name, Image.new("RGB", size, "blue"), pictures, pictures[picked])


def test_panels_say_what_the_rollouts_are():
    original, *others = panels(picked=2)
    assert (original.title, original.is_picked) == ("photo", False)
    assert [panel.is_picked for panel in others] == [index == 2 for index in range(NUM_ROLLOUTS)]
    assert others[1].title == "64 tokens"
    assert list(others[1].lines) == ["L1 0.562 · 12.0 dB", "96 bytes"]


@pytest.mark.parametrize("size", [(256, 256), (384, 128), (100, 300)])
@pytest.mark.parametrize("columns", [3, 9])
def test_nothing_covers_anything(size, columns):
    row = panels(picked=4, name="a_very_long_name_of_a_photograph_that_would_not_fit.jpg", size=size)
    grid = [row[start : start + columns] for start in range(0, len(row), columns)]
    figure = draw_panels(grid, frame_caption(0.05))
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text.get_window_extent(renderer) for text in figure.texts]
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes]
    frames = [artist.get_window_extent(renderer) for artist in figure.artists + figure.patches]
    assert (len(pictures), len(frames)) == (9, 1)
    assert len(texts) >= 3 * 9 + 1
    for one, other in itertools.combinations(texts + pictures, 2):
        assert not one.overlaps(other)
    assert not any(frames[0].overlaps(text) for text in texts)
    for box in texts + pictures + frames:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def test_frame_is_around_the_picked_picture(tmp_path):
    rows = [panels(picked=0), panels(picked=7)]
    save_figure(draw_panels(rows, frame_caption(0.05)), tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"), dtype=int)
    red = np.abs(pixels - np.round(255 * np.array(to_rgb("#d1242f")))).max(axis=-1) <= 2
    # Only the sides of a frame are red from top to bottom of a picture.
    height, width = red.shape
    for half, column in ((red[: height // 2], 1), (red[height // 2 : int(height * 0.96)], 8)):
        sides = np.flatnonzero(half.sum(axis=0) > 200)
        assert len(sides) > 0
        assert sides.min() > (column - 0.05) * width / 9 - 10
        assert sides.max() < (column + 1) * width / 9 + 10


def test_pictures_are_drawn_upright_in_their_own_colours(tmp_path):
    picture = Image.new("RGB", (256, 256), "lime")
    picture.paste("navy", (0, 0, 256, 128))
    save_figure(draw_panels([[Panel(picture, "title")]], "caption"), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as drawn:
        colors = {color: count for count, color in drawn.convert("RGB").getcolors(maxcolors=10**6)}
        assert colors[0, 0, 128] == pytest.approx(256 * 128, rel=0.02)
        assert colors[0, 255, 0] == pytest.approx(256 * 128, rel=0.02)
        middle = drawn.convert("RGB").getchannel("B").crop((40, 0, 41, drawn.height))
        navy = [y for y in range(drawn.height) if middle.getpixel((0, y)) == 128]
        lime = [y for y in range(drawn.height) if middle.getpixel((0, y)) == 0]
        assert max(navy) < min(y for y in lime if y > min(navy))
