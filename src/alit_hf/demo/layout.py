"""The demo's page: what stands where, and what happens when something is dropped, moved or clicked."""

from collections.abc import Callable
from functools import cache
from typing import Any

import gradio as gr

from alit_hf.option_types import DEFAULT_THRESHOLD

from .codes import EncodedPicture, Kept
from .example_photos import EXAMPLE_NAMES, example_photo
from .rendering import chosen_html, examples_html, message_html, strip_html, tokens_html
from .tokenizer import DemoTokenizer
from .uploads import UploadError, process_upload


# Uploads are deleted when they are read. These were never asked for, or waited longer than anyone does.
_FORGOTTEN_UPLOAD_SECONDS = 300

# The model works on one picture at a time, and everybody waits for a turn; what needs no model does not wait.
_ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
_AT_ONCE = {"concurrency_limit": None, "show_progress": "hidden"}
_PRIVATE = {"api_visibility": "private"}

# Pixels, below which what stands side by side goes below each other.
_COLUMN_WIDTH = 340
_PART_WIDTH = 260

_LARGEST_THRESHOLD = 0.3

_ABOUT = """# ALIT: as many tokens as a picture needs
Each picture is encoded at every length, and the shortest code whose error is below the threshold is chosen.
What you drop in is deleted as soon as it is read, and what you see is forgotten after an hour without you."""

_CLICKS = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-%(kind)s]');
    if (button) trigger('click', {%(kind)s: button.dataset.%(kind)s});
});
"""
_PICKED = "figure:nth-child(${picked}) img { outline: 4px solid var(--color-accent); outline-offset: 1px; }"
_PRESSED = """
button:nth-child(${pressed}) { border-color: transparent; background: var(--color-accent); color: white; }
"""


def build_demo(tokenizer: DemoTokenizer) -> gr.Blocks:
    """
    Args:
        tokenizer (`DemoTokenizer`): works on one picture at a time, whoever dropped it in.
    """
    encode_example = cache(lambda name: tokenizer.encode(name, example_photo(name)))
    with gr.Blocks(
        title="ALIT",
        analytics_enabled=False,
        delete_cache=(_FORGOTTEN_UPLOAD_SECONDS, _FORGOTTEN_UPLOAD_SECONDS),
    ) as demo:
        gr.Markdown(_ABOUT)
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=_PART_WIDTH):
                threshold = gr.Slider(
                    0,
                    _LARGEST_THRESHOLD,
                    value=DEFAULT_THRESHOLD,
                    step=0.005,
                    label="Threshold",
                    info="L1 error (mean absolute difference of pixels in [0, 1]) that is good enough",
                    elem_id="threshold",
                )
            with gr.Column(scale=1, min_width=_PART_WIDTH):
                compare = gr.Checkbox(label="Compare with a second picture", elem_id="compare")
        with gr.Row():
            with gr.Column(min_width=_COLUMN_WIDTH):
                first = _View("first", starts_empty=False)
            with gr.Column(min_width=_COLUMN_WIDTH, visible=False) as second_column:
                second = _View("second", starts_empty=True)
        for view in (first, second):
            _connect(view, threshold, tokenizer, encode_example)
        compare.change(
            lambda wanted: gr.Column(visible=wanted), compare, second_column, show_progress="hidden", **_PRIVATE
        )
        demo.load(
            lambda level: _shown(encode_example(EXAMPLE_NAMES[0]), level),
            threshold,
            first.outputs,
            **_ON_MODEL,
            **_PRIVATE,
        )
    return demo


class _View:
    """One picture's part of the page, made where it is to stand. Its state belongs to the session."""

    def __init__(self, name: str, starts_empty: bool):
        self.name = name
        self.starts_empty = starts_empty
        self.kept = gr.State()
        self.token = gr.State()
        with gr.Row():
            with gr.Column(min_width=_PART_WIDTH):
                self.file = gr.File(label="Drop in a picture or an .alit file", height=140, elem_id=f"{name}-file")
            with gr.Column(min_width=_PART_WIDTH):
                self.examples = _html(
                    f"{name}-examples",
                    examples_html({example: example_photo(example) for example in EXAMPLE_NAMES}),
                    js_on_load=_CLICKS % {"kind": "example"},
                )
        self.message = _html(f"{name}-message", visible=False)
        self.chosen = _html(f"{name}-chosen")
        self.strip = _html(f"{name}-strip", picked=0, css_template=_PICKED)
        self.tokens = _html(f"{name}-tokens", pressed=0, css_template=_PRESSED, js_on_load=_CLICKS % {"kind": "token"})
        self.outputs_of_choice = [self.token, self.strip, self.chosen, self.tokens]
        self.outputs = [self.message, self.file, self.kept, *self.outputs_of_choice]


def _html(elem_id: str, value: str = "", **kwargs: Any) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, elem_classes="alit", apply_default_css=False, **kwargs)


def _connect(
    view: _View,
    threshold: gr.Slider,
    tokenizer: DemoTokenizer,
    encode_example: Callable[[str], EncodedPicture],
) -> None:
    def drop(path: str, level: float) -> list:
        try:
            return _shown(process_upload(tokenizer, path), level)
        except UploadError as error:
            message = gr.HTML(message_html(str(error)), visible=True)
            return [message, None, *[gr.skip()] * 5]  # the picture before stays

    def pick_example(level: float, event: gr.EventData) -> list:
        return _shown(encode_example(event.example), level)

    def press_token(kept: Kept | None, level: float, event: gr.EventData) -> list:
        if kept is None:
            raise _forgotten()
        return _choice(kept, level, int(event.token))

    def move(kept: Kept | None, level: float, token: int | None) -> list:
        if kept is None:
            if view.starts_empty:
                return [gr.skip()] * 4
            raise _forgotten()
        return _choice(kept, level, token)

    view.file.upload(
        drop,
        [view.file, threshold],
        view.outputs,
        show_progress_on=view.chosen,
        api_name=f"{view.name}_drop",
        **_ON_MODEL,
    )
    view.examples.click(pick_example, threshold, view.outputs, show_progress_on=view.chosen, **_ON_MODEL, **_PRIVATE)
    threshold.change(
        move,
        [view.kept, threshold, view.token],
        view.outputs_of_choice,
        trigger_mode="always_last",
        api_name=f"{view.name}_choose",
        **_AT_ONCE,
    )
    view.tokens.click(
        press_token,
        [view.kept, threshold],
        view.outputs_of_choice,
        trigger_mode="always_last",
        **_AT_ONCE,
        **_PRIVATE,
    )


def _forgotten() -> gr.Error:
    return gr.Error("There is no picture any more, please drop it in again.", print_exception=False)


def _shown(kept: Kept, threshold: float) -> list:
    """What a view's outputs become for a new picture."""
    message = gr.HTML("", visible=False)
    return [message, None, kept, *_choice(kept, threshold, None, value=strip_html(kept))]


def _choice(kept: Kept, threshold: float, token: int | None, **strip: str) -> list:
    """
    What the outputs of a choice become for a threshold and a token; nothing is encoded or decoded. Without more about
    the `strip` only its frame moves.
    """
    chosen = kept.choose(threshold)
    if token is not None and not 0 <= token < chosen.num_tokens:
        token = None
    pressed = 0 if token is None else 1 + token
    return [
        token,
        gr.HTML(picked=chosen.position, **strip),
        chosen_html(kept, chosen, token),
        gr.HTML(tokens_html(chosen), pressed=pressed),
    ]


__all__ = ["build_demo"]
